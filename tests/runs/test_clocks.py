"""The clock of a machine may jump: no rate, duration or name of a file depends on it."""

import ast
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from experiments.launch.clock import SystemClock
from gpt_jax.config import Evaluation
from gpt_jax.runs.goodput import GOODPUT, PHASES
from gpt_jax.runs.train import train
from tests.tiny import PROGRAMS, tiny_config

ROOT = Path(__file__).resolve().parents[2]
STAMPS = {  # where the date is meant: what is shown to people, and stamps in files that others read
    "experiments/launch/clock.py": 1,
    "experiments/launch/worker.py": 2,
    "gpt_jax/runs/goodput.py": 2,  # and for the time between starts, which no other clock tells
    "gpt_jax/runs/metrics.py": 1,
}


def test_the_date_is_read_for_stamps_only() -> None:
    found: dict[str, int] = {}
    for path in [*ROOT.glob("gpt_jax/**/*.py"), *ROOT.glob("experiments/**/*.py")]:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        count = sum(
            ast.unparse(call.func) in ("time.time", "time.time_ns", "datetime.datetime.utcnow") for call in calls
        )
        if count:
            found[str(path.relative_to(ROOT))] = count
    assert found == STAMPS


def test_a_clock_that_jumps_changes_no_rate_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaps by minutes, forth and back, at every look; two starts at one second do not share a file of events.

    Not by more: Orbax measures by the date too, and lets a save fail during which ten minutes seem to have passed.
    """
    looks = iter(range(10**6))
    monkeypatch.setattr("time.time", lambda: 1.7e9 + 100.0 * (next(looks) % 3))
    for steps in (4, 6):
        config = tiny_config(steps=steps, evaluation=Evaluation(every=2, batch_size=8))
        train(config, tmp_path, console=Console(quiet=True), programs=PROGRAMS)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["tokens_per_second"] for line in lines if line["split"] == "train"]
    assert len(rates) == 6 and all(rate is None or 0 < rate < math.inf for rate in rates)
    shares = [line[phase] for line in lines if line["split"] == GOODPUT for phase in PHASES]
    assert shares and all(0 <= share <= 1 for share in shares)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_the_launchers_clock_does_not_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SystemClock()
    before = clock.now()
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert 0 <= clock.now() - before < 5 and before > 1e9
