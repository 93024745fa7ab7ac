"""A report says what its results say, in one file that needs nothing else, whatever is missing or is in a name."""

import csv
import io
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from gpt_jax.ablation.findings import StudyResults
from gpt_jax.ablation.records import from_json
from gpt_jax.ablation.report import to_html, to_markdown, write_report
from gpt_jax.ablation.table import to_csv
from gpt_jax.config.errors import ConfigError
from tests.ablation import made_up

NASTY = "<script>alert(1)</script>\"'&|`*_$title ${body}"


class Page(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self._in_arms = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._in_arms = dict(attrs).get("id") == "arms"
        elif tag == "tr" and self._in_arms:
            self.rows.append([])
        elif tag in ("td", "th") and self._in_arms:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._in_arms and self.rows and self.rows[-1] and self.lasttag not in ("small",):
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._in_arms = False

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def figures(self) -> set[str | None]:
        return {attributes["id"] for tag, attributes in self.tags if tag == "figure"}


def complete(results: dict[str, Any]) -> StudyResults:
    return from_json(StudyResults, json.loads(json.dumps(results)), "results.json")


def html_of(results: dict[str, Any]) -> str:
    return to_html(complete(results))


def visible(source: str) -> str:
    """The page without its style and its script."""
    return re.sub(r"<(style|script)>.*?</\1>", "", source, flags=re.DOTALL)


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    return made_up.study()


@pytest.fixture(scope="module")
def source(study: dict[str, Any]) -> str:
    return html_of(study)


@pytest.fixture
def fresh(study: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(study))


def test_the_files_lie_beside_the_results(tmp_path: Path, study: dict[str, Any]) -> None:
    (tmp_path / "results.json").write_text(json.dumps(study))
    path = write_report(str(tmp_path))
    assert path == str(tmp_path / "report.html")
    names = {"results.json", "report.html", "report.md", "results.csv"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert Path(path).read_text("utf-8").startswith("<!doctype html>")


def test_the_page_loads_nothing(source: str) -> None:
    page = Page(source)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert not {"src", "href", "srcset", "xlink:href"} & {name for _, attributes in page.tags for name in attributes}
    assert "http:" not in source.replace("http-equiv", "") and "https:" not in source
    assert "@import" not in source and "url(" not in source
    (policy,) = (a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_question_and_verdict_come_first(source: str, study: dict[str, Any]) -> None:
    text = visible(source)
    assert text.index(study["question"]) < text.index(study["verdict"]) < text.index("<table") < text.index("<figure")


def test_every_arm_is_in_the_table_with_its_figures(source: str, study: dict[str, Any]) -> None:
    head, *rows = Page(source).rows
    assert head[:5] == ["arm", "validation loss", "Δ", "p (Holm)", "verdict"]
    assert [row[0].removesuffix(" baseline") for row in rows] == [arm["name"] for arm in study["arms"]]
    for row, arm in zip(rows, study["arms"], strict=True):
        low, high = arm["interval"]
        assert row[1] == f"{arm['mean']:.4f} ± {(high - low) / 2:.4f}"
        assert row[head.index("KV bytes/token")] == f"{arm['kv_bytes_per_token']:,}"
        if (versus := arm["versus_baseline"]) is not None:
            assert row[2].split(" ± ")[0] == f"{versus['mean']:+.4f}".replace("-", "−")
            assert row[4] == versus["verdict"]


def test_markdown_and_csv_agree_with_the_results(study: dict[str, Any]) -> None:
    markdown = to_markdown(complete(study))
    table = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("| ")]
    rows = list(csv.DictReader(io.StringIO(to_csv(complete(study)))))
    assert len(rows) == len(study["arms"])
    for arm, row, cells in zip(study["arms"], rows, table[2:], strict=False):
        assert row["arm"] == cells[0] == arm["name"]
        assert float(row["mean"]) == arm["mean"] and cells[1].startswith(f"{arm['mean']:.4f}")
        assert int(row["kv_bytes_per_token"]) == arm["kv_bytes_per_token"]
        assert [float(row[f"loss_seed_{seed}"]) for seed in study["seeds"]] == list(arm["losses"].values())
        assert json.loads(row["changes"]) == arm["changes"]
        if (versus := arm["versus_baseline"]) is not None:
            assert float(row["difference_mean"]) == versus["mean"]
            assert float(row["difference_t_interval_high"]) == versus["t_interval"][1]
            assert row["verdict"] == cells[4] == versus["verdict"]
    assert study["question"] in markdown and study["verdict"] in markdown
    assert f"    {study['repeat']['command']}\n" in markdown


def test_only_columns_named_for_it_depend_on_clock_and_machine(fresh: dict[str, Any], study: dict[str, Any]) -> None:
    for arm in fresh["arms"]:
        for key in (k for k in arm if k.startswith("measured_")):
            arm[key] *= 1.5
        for run in arm["runs"]:
            run["wall_seconds"] += 3
            run["folder"] = f"elsewhere/{run['folder']}"
    fresh["repeat"]["wall_seconds"] = 1.0
    before, after = (list(csv.DictReader(io.StringIO(to_csv(complete(r))))) for r in (study, fresh))
    changed = {name for a, b in zip(before, after, strict=True) for name in a if a[name] != b[name]}
    assert changed and all(re.fullmatch(r"measured_.*|.*_seconds|.*_per_second", name) for name in changed)


def test_names_from_users_are_text(fresh: dict[str, Any]) -> None:
    for arm in fresh["arms"][1:]:
        arm["name"] += NASTY
        arm["changes"] = {NASTY: NASTY}
        arm["versus_baseline"]["verdict"] = NASTY
        arm["accuracy_by"]["label"] = NASTY
        arm["runs"][0] |= {"folder": NASTY, "status": NASTY, "config_hash": NASTY}
    fresh |= {"question": NASTY, "verdict": NASTY, "budget": {"match": NASTY, "field": NASTY}}
    fresh["repeat"] |= {"command": NASTY, "git": NASTY, "failures": [NASTY], "configs": {NASTY: {NASTY: NASTY}}}
    source = html_of(fresh)
    page = Page(source)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(NASTY) > 20
    for arm in fresh["arms"]:
        assert any(row[0].startswith(arm["name"]) for row in page.rows)
    markdown = to_markdown(complete(fresh))
    outside = [line for line in markdown.splitlines() if not line.startswith("    ")]
    assert not any("<script" in line for line in outside)
    widths = {len(re.split(r"(?<!\\)\|", line)) for line in outside if line.startswith("| ") and "kv" not in line}
    assert len(widths) <= 3  # one for each table: no name added a column


def test_pictures_are_well_formed_and_drawn_twice(source: str) -> None:
    whole = re.findall(r"(<svg class=.*?</svg>)(?=<svg class=|</figure>)", source, re.DOTALL)
    assert [picture.split('"')[1] for picture in whole] == ["wide", "narrow"] * 9
    for picture in whole:
        root = ElementTree.fromstring(picture)
        numbers = [v for e in root.iter() for k, v in e.items() if k in ("x", "y", "x1", "y1", "x2", "y2", "cx", "cy")]
        assert all(math.isfinite(float(v)) for v in numbers)
        assert "nan" not in picture


REMOVED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "forest": lambda arm: arm.update(versus_baseline=None),
    "validation-curves": lambda arm: arm["curves"].pop("validation"),
    "train-curves": lambda arm: arm["curves"].update(train=None),
    "learning-rate": lambda arm: arm.update(by_learning_rate=None),
    "position": lambda arm: arm.update(loss_by_position=None),
    "extrapolation": lambda arm: arm.pop("extrapolation"),
    "accuracy": lambda arm: arm.update(accuracy_by=None),
    "pareto": lambda arm: arm.update(kv_bytes_per_token=None),
}
WORDS = {
    "forest": "forest of differences",
    "validation-curves": "validation loss over training",
    "train-curves": "training loss",
    "learning-rate": "loss against learning rate",
    "position": "loss by position",
    "extrapolation": "length extrapolation",
    "accuracy": "accuracy",
    "pareto": "loss against KV bytes",
}


@pytest.mark.parametrize("figure", REMOVED)
def test_what_was_not_measured_is_left_out_and_named(fresh: dict[str, Any], source: str, figure: str) -> None:
    whole = Page(source)
    assert figure in whole.figures() and "Not measured" not in whole.text
    for arm in fresh["arms"]:
        REMOVED[figure](arm)
    page = Page(html_of(fresh))
    gone = {figure} | ({"gap"} if figure == "validation-curves" else set())
    assert page.figures() == whole.figures() - gone
    named = [text for text in page.texts if text.startswith("Not measured: ")]
    assert any(WORDS[figure] in text for text in named)
    assert WORDS[figure] in to_markdown(complete(fresh))


def test_columns_without_a_value_are_left_out_and_named(fresh: dict[str, Any]) -> None:
    for arm in fresh["arms"]:
        arm |= {"measured_peak_bytes": None, "flops_per_token": None, "diagnostics": {"sink_mass": 0.1}}
    page = Page(html_of(fresh))
    assert not {"peak memory", "FLOPs/token"} & set(page.rows[0])
    assert "Not measured: FLOPs/token, peak memory." in page.text
    assert "Not measured: attention entropy, largest logit, gradient norm, skipped steps." in page.text


def test_one_arm_and_one_seed() -> None:
    page = Page(html_of(made_up.study(names=("only",), seeds=1)))
    assert "One seed: there are no intervals and no tests" in page.text
    assert page.rows[1][1] == "1.5332" and "±" not in page.rows[1][1]
    assert not {"forest", "gap", "pareto"} & page.figures()


def test_two_arms_of_one_seed_have_a_difference_without_an_interval() -> None:
    page = Page(html_of(made_up.study(names=("a", "b"), seeds=1)))
    assert "forest" in page.figures() and "One seed: no intervals." in page.text
    assert page.rows[2][2] == "−0.0019"


def test_diverged_runs_are_shown_and_in_no_mean(fresh: dict[str, Any]) -> None:
    arm = fresh["arms"][1]
    arm["runs"][3]["status"] = "diverged"
    arm["losses"]["3"] = math.nan
    arm["n"] = 7
    lost = fresh["arms"][2]
    for run in lost["runs"]:
        run["status"] = "diverged"
    lost |= {"mean": None, "std": None, "n": 0, "interval": None, "versus_baseline": None, "curves": None}
    lost["by_learning_rate"] = {"0.003": [None, math.inf]}
    page = Page(html_of(fresh))
    assert "9 of 40 runs diverged (gqa2, mqa); they are in no mean." in page.text
    head, _, one, other, *_ = page.rows
    assert one[head.index("runs")].startswith("7 of 8") and one[head.index("seeds")] == "7"
    assert other[1] == "diverged"
    assert "This study is not finished" not in page.text
    rows = list(csv.DictReader(io.StringIO(to_csv(complete(fresh)))))
    assert rows[1]["loss_seed_3"] == "" and rows[1]["runs_diverged"] == "1" and rows[2]["mean"] == ""


def test_a_study_half_run_says_so_on_top(fresh: dict[str, Any]) -> None:
    fresh["arms"][0]["runs"][7]["status"] = "interrupted"
    arm = fresh["arms"][4]
    empty = {
        "name": arm["name"],
        "changes": arm["changes"],
        "runs": [run | {"status": "missing"} for run in arm["runs"]],
    }
    fresh["arms"][4] = empty
    fresh["verdict"] = None
    source = visible(html_of(fresh))
    assert source.index("31 of 40 runs are done (1 interrupted, 8 missing)") < source.index("<table")
    assert "No verdict yet." in source
    assert Page(source).rows[5][1] == "not run yet"
    assert "> This study is not finished" in to_markdown(complete(fresh))


def test_a_study_of_which_nothing_ran_has_a_page(fresh: dict[str, Any]) -> None:
    fresh["arms"] = [{"name": arm["name"], "runs": []} for arm in fresh["arms"]]
    page = Page(html_of(fresh))
    assert "This study is not finished: no run has begun" in page.text and page.figures() == set()
    assert len(page.rows) == 6


def test_an_unequal_copy_of_the_baseline_is_a_warning(fresh: dict[str, Any], source: str) -> None:
    assert "trust no difference" not in source and "bit-equal" in source
    fresh["aa"] = {"equal": False}
    assert "trust no difference" in html_of(fresh)
    fresh["aa"] = None
    assert "not compared" in html_of(fresh)


def test_twenty_arms_have_names_that_do_not_touch() -> None:
    names = tuple(f"arm number {i}" for i in range(20))
    source = html_of(made_up.study(names=names, seeds=2))
    for picture in re.findall(r'<figure id="validation-curves">.*?</figure>', source, re.DOTALL):
        for drawn in re.split(r'(?=<svg class="narrow")', picture):
            places = sorted(float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="start" class="name"', drawn))
            assert len(places) == 20
            assert min(b - a for a, b in zip(places, places[1:], strict=False)) >= 13.9
    assert len(set(re.findall(r'class="arm (?:base|c\d)"', source))) == 7


def test_a_folder_without_results_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no results.json in .*: give the folder"):
        write_report(str(tmp_path))
    (tmp_path / "results.json").write_text('{"arms": 3}')
    with pytest.raises(ConfigError, match="results.json holds no StudyResults: it has no field"):
        write_report(str(tmp_path))
