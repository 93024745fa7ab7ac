"""Runs side by side: every run, its own figures, what sets them apart; and `experiments.report` as people call it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import _spread
from gpt_jax.ablation.compare import short_names, write_comparison
from tests.ablation import made_up
from tests.ablation.test_report import Page

ROOT = Path(__file__).resolve().parents[2]


def write_run(folder: Path, losses: list[float | None], **settings: Any) -> Path:
    """The folder of a run that took a step for each loss, and was evaluated after every second one."""
    folder.mkdir(parents=True)
    lines = []
    for step, value in enumerate(losses, 1):
        speed = None if step == 1 else 1000.0 * step
        lines.append({"step": step, "split": "train", "loss": value, "tokens": 64, "tokens_per_second": speed})
        if step % 2 == 0:
            lines.append({"step": step, "split": "validation", "loss": None if value is None else value + 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    resolved = {"model": {"width": 64, "attention": {"kv_heads": 4}}, "seed": 0} | settings
    (folder / "config.json").write_text(json.dumps({"config": {}, "resolved": resolved}))
    return folder


def table(page: Page) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in page.rows[1:]}


def test_every_run_with_its_figures_and_what_sets_it_apart(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", [3.0, 2.0, 1.0, 1.5])
    second = write_run(tmp_path / "<second>", [3.0, 2.5], model={"width": 96, "attention": {"kv_heads": 4}})
    path = write_comparison([str(first), str(second)], str(tmp_path / "made" / "page.html"))
    source = Path(path).read_text("utf-8")
    page = Page(source)
    assert table(page) == {
        "first": ["4", "2.0000", "2.0000", "4", "256", "3,000"],
        "<second>": ["2", "3.0000", "3.0000", "2", "128", "2,000"],
    }
    assert page.figures() == {"validation-curves", "gap", "train-curves"}
    assert 'data-values="1,3 2,2 3,1 4,1.5"' in source and 'data-values="1,3 2,2.5"' in source
    differences = source[source.index('<table id="settings">') : source.index("<h2>Folders")]
    assert re.findall(r"<td[^>]*>(.*?)</td>", differences) == ["model.width", "64", "96"]
    assert str(first) in page.text


def test_a_run_that_diverged_and_one_that_was_never_evaluated(tmp_path: Path) -> None:
    lost = write_run(tmp_path / "lost", [3.0, None])
    short = write_run(tmp_path / "short", [3.0])
    page = Page(Path(write_comparison([str(lost), str(short)], str(tmp_path / "page.html"))).read_text("utf-8"))
    assert table(page)["lost"][:2] == ["2", "–"] and table(page)["short"][:2] == ["1", "–"]
    assert page.figures() == {"train-curves"}
    assert "Not measured: validation loss; loss minus the first run’s." in page.text
    assert "Their configurations are equal." in page.text


def test_runs_of_one_name_are_told_apart() -> None:
    assert short_names(["/a/x/run", "/a/y/run", "/a/y/other"]) == ["x/run", "y/run", "y/other"]
    assert short_names(["/a/x/run"]) == ["run"]


def test_what_can_not_be_compared_is_one_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [1.0])
    with pytest.raises(FileNotFoundError, match="there is no run in .*nowhere: name the folder"):
        write_comparison([str(run), str(tmp_path / "nowhere")], str(tmp_path / "page.html"))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="nothing was recorded yet in"):
        write_comparison([str(tmp_path / "new")], str(tmp_path / "page.html"))
    with pytest.raises(ValueError, match="named twice"):
        write_comparison([str(run), f"{run}/"], str(tmp_path / "page.html"))


def test_a_flag_takes_all_the_words_that_follow_it() -> None:
    line = ["report", "--compare", "a", "b", "--output", "c.html"]
    assert _spread(line, "compare") == ["report", "--compare=a", "--compare=b", "--output", "c.html"]
    assert _spread(["report", "--compare=a", "b"], "compare") == ["report", "--compare=a", "--compare=b"]
    assert _spread(["report", "--workdir=a", "b"], "compare") == ["report", "--workdir=a", "b"]


def report(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {MAIN}", *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=300)


MAIN = "import runpy; runpy.run_module('experiments.report', run_name='__main__', alter_sys=True)"


def test_the_command_line(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, [2.0, 1.0]) for name in ("a", "b")]
    done = report("--compare", *(run.name for run in runs), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "comparison.html\n"), done.stderr
    assert set(table(Page((tmp_path / "comparison.html").read_text("utf-8")))) == {"a", "b"}

    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "results.json").write_text(json.dumps(made_up.study(seeds=2)))
    done = report("--workdir=study", cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "study" / "report.html")), done.stderr

    for line, code, words in (
        (["--workdir=nowhere"], 1, "there is no results.json"),
        (["--workdir=study", "--compare", "a"], 2, "give either --workdir"),
    ):
        done = report(*line, cwd=tmp_path)
        assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr
