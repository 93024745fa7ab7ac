"""`experiments.judge` and `experiments.calibrate` as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

TABLE = "arm,seed,loss\n" + "".join(
    f"{arm},{seed},{1.5 + 0.01 * seed + shift * (1 + 0.001 * (seed - 2))}\n"
    for arm, shift in (("softmax", 0.0), ("sigmoid", 0.05), ("sinks", -0.001))
    for seed in range(5)
)


def command(name: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", f"experiments.{name}", *args], capture_output=True, text=True)


def test_a_table_gets_verdicts_and_a_page(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(TABLE)
    done = command("judge", str(tmp_path / "mine.csv"), "--baseline=softmax", "--smallest_difference=0.01")
    assert done.returncode == 0, done.stderr
    assert "sigmoid is worse: +0.0500 nats" in done.stdout and "sinks is slightly better" in done.stdout
    page = (tmp_path / "mine" / "report.html").read_text()
    assert "sigmoid" in page and "slightly better" in page
    assert (tmp_path / "mine" / "results.csv").exists()


def test_what_the_verdict_leaves_out_is_told_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(TABLE.replace("sigmoid,4,", "sigmoid,nine,"))
    done = command("judge", str(tmp_path / "mine.csv"), "--baseline=softmax", "--smallest_difference=0.01")
    said = (
        "without a pair, and so left out of sigmoid’s difference: seed 4 of softmax only and seed nine of sigmoid only"
    )
    assert f"  note: {said}\n" in done.stdout, done.stderr
    assert "sigmoid is undecided, 4 of 5 planned seeds done" in done.stdout
    page = (tmp_path / "mine" / "report.html").read_text()
    assert f'<p class="mark">W{said[1:]}.</p>' in page and page.index(said[1:]) < page.index("<table")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "--table is required"),
        (("mine.csv", "--smallest_difference=0.01"), "--baseline is required"),
        (("no.csv", "--baseline=a", "--smallest_difference=1"), "there is no file no.csv"),
    ],
)
def test_mistakes_get_a_sentence(args: tuple[str, ...], message: str) -> None:
    done = command("judge", *args)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


def test_calibrate_writes_its_tables(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n<!-- figures -->\n<!-- end of figures -->\n\nafter\n")
    done = command("calibrate", "--studies=100", f"--output={page}")
    assert done.returncode in (0, 1) and "| figure | asked | seen |" in page.read_text(), done.stderr
    assert page.read_text().startswith("# Page") and page.read_text().endswith("after\n")
    assert command("calibrate", f"--output={tmp_path / 'none.md'}").returncode == 1
