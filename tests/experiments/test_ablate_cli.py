"""`experiments.ablate` as a person meets it: its page, its answers to mistakes, and a study that survives kill -9."""

import csv
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpt_jax.ablation.plan import make_plan
from gpt_jax.config import Config
from gpt_jax.config.conversion import from_config_dict

ROOT = Path(__file__).resolve().parents[2]
# Of each kind one runs: arms of another size, another module, a task and its suites, longer rows, rates to sweep.
RUN = ["kv_heads", "latent", "memory", "positions", "qk_norm"]
PLANNED = sorted({path.stem for path in (ROOT / "configs" / "ablations").glob("*.py")} - {"base", *RUN})

STUDY = """
from gpt_jax.ablation.combine import vary
from gpt_jax.ablation.study import Study
from gpt_jax.config import Attention, Checkpoint, Evaluation
from gpt_jax.config.conversion import to_config_dict
from tests.tiny import tiny_config

def get_config():
    steps = 60
    return to_config_dict(tiny_config(steps, evaluation=Evaluation(20, 8), checkpoint=Checkpoint(10)))

def get_study(base):
    knob = "model.attention.kv_heads"
    return Study("Fewer?", base, vary(knob, mha=2, mqa=1), "mha", (knob,), 0.01, seeds=(0, 1), fresh_seeds=1)
"""


def environment() -> dict[str, str]:
    """Of the commands, which compile cheaply: no number here is compared with one of another program."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "experiments.ablate", *flags]


def ablate(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*flags), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)


def report(*flags: str) -> subprocess.CompletedProcess[str]:
    started = [sys.executable, "-m", "experiments.report", *flags]
    return subprocess.run(started, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.fixture
def study(tmp_path: Path) -> str:
    (tmp_path / "study.py").write_text(STUDY)
    return f"--config={tmp_path / 'study.py'}"


def test_help_reads_like_a_page() -> None:
    shown = ablate("--help")
    assert shown.returncode == 0 and "--smoke" in shown.stdout and "kv_heads.py" in shown.stdout
    assert all(len(line) <= 120 for line in shown.stdout.splitlines())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=x"], "--config is required"),
        (["--workdir=x", "--config=configs/quickstart.py"], "not a study: it needs get_study"),
        (["--config=configs/ablations/window.py"], "--workdir is required"),
        (["--workdir=x", "--config=configs/ablations/window.py:tune"], "choose :tuned, or none"),
        (["--workdir=x", "--config=configs/ablations/qk_norm.py:tuned"], "leave the argument out"),
        (["--workdir=x", "--config=configs/ablations/window.py", "--shard=3/2"], "--shard must be I/N"),
        (["--workdir=x", "--config=configs/ablations/window.py", "--learning_rates=a,b"], "must be numbers"),
        (["--workdir=x", "--config=configs/ablations/induction.py", "--noise=1"], "--noise goes with --dry"),
    ],
)
def test_mistakes_get_one_sentence(flags: list[str], message: str) -> None:
    answer = ablate(*flags)
    assert answer.returncode == 2 and message in answer.stderr and "Traceback" not in answer.stderr


def test_dry_prints_the_arms_and_writes_nothing(study: str, tmp_path: Path) -> None:
    shown = ablate(study, f"--workdir={tmp_path / 'out'}", "--dry", "--seeds=3", "--config.train.steps=7")
    assert shown.returncode == 0, shown.stderr
    assert "model.attention.kv_heads: 2 → 1 (asked by the arm)" in shown.stdout
    assert (
        "8 runs: 2 arms × 3 seeds, 1 of the baseline for the noise, and 1 copy for the determinism check"
        in shown.stdout
    )
    assert "(a guess: what matters; state it with --noise)" in shown.stdout
    assert not (tmp_path / "out").exists()


def test_dry_says_what_seeds_would_buy(study: str, tmp_path: Path) -> None:
    """By Student's t with one arm and one look: 1.16 standard deviations with 8 seeds, found in 80% of studies."""
    shown = ablate(study, f"--workdir={tmp_path / 'out'}", "--dry", "--seeds=8", "--noise=0.1")
    assert shown.returncode == 0, shown.stderr
    [row] = [line.split() for line in shown.stdout.splitlines() if line.endswith("this study")]
    assert row[0] == "8" and 0.116 <= float(row[1]) <= 0.135, "a little more than for a study that never grows"
    refused = ablate(study, f"--workdir={tmp_path / 'out'}", "--dry", "--noise=-1")
    assert refused.returncode == 1 and "positive standard deviation" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANNED)
def test_shipped_studies_have_a_plan(name: str) -> None:
    """Every arm can be built, at its own size, and keeps to the knobs and the budget that its study declares."""
    module = importlib.import_module(f"configs.ablations.{name}")
    plan = make_plan(module.get_study(from_config_dict(Config, module.get_config())))
    assert len(plan.arms) > 1 and all(arm.is_ranked for arm in plan.arms.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_shipped_studies_smoke(name: str, tmp_path: Path) -> None:
    shown = ablate(f"--config=configs/ablations/{name}.py", f"--workdir={tmp_path}", "--smoke")
    assert shown.returncode == 0, shown.stderr
    assert "  note: a smoke test: decides nothing" in shown.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["aa"]["equal"] and results["repeat"]["failures"] == []
    assert all(arm["n"] == 2 for arm in results["arms"])
    assert (tmp_path / "report.html").stat().st_size > 10_000
    if name == "kv_heads":
        look_inside_two_arms(tmp_path)


def look_inside_two_arms(folder: Path) -> None:
    """The report links to a page of two arms, once there is one."""
    assert "inspect.html" not in (folder / "report.html").read_text()
    refused = report(f"--workdir={folder}", "--inspect=mha")
    assert refused.returncode == 1 and "give one arm, to stand beside the baseline mha" in refused.stderr
    shown = report(f"--workdir={folder}", "--inspect=mqa", "--prompt=def f")
    assert shown.returncode == 0, shown.stderr
    assert '<a href="inspect.html">' in (folder / "report.html").read_text()
    assert "A walk through mha and mqa" in (folder / "inspect.html").read_text()


def table(folder: Path) -> list[dict[str, str]]:
    """results.csv without what depends on the clock or the machine, as its names say."""
    with open(folder / "results.csv") as file:
        rows = list(csv.DictReader(file))
    moving = ("_seconds", "_per_second")
    return [{k: v for k, v in r.items() if not (k.endswith(moving) or k.startswith("measured_"))} for r in rows]


def recorded_steps(folder: Path) -> int:
    """Training steps that a study has recorded so far."""
    return sum(text.read_text().count('"train"') for text in folder.glob("runs/*/metrics.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("together", [1, 2])
def test_a_study_survives_kill_9(together: int, study: str, tmp_path: Path) -> None:
    """Killed at two random moments, it ends in the table of one that was left alone; two processes find the same."""
    more = f"--together={together}"
    flags = {name: [study, f"--workdir={tmp_path / name}", more] for name in ("whole", "killed", "jobs")}
    assert ablate(*flags["whole"]).returncode == 0
    steps = recorded_steps(tmp_path / "whole")
    assert steps == 60 * (6 if together == 1 else 7), "the copy of a group is a group"
    for moment in sorted(random.Random(0).sample(range(10, steps - 60), 2)):
        process: Any = subprocess.Popen(
            command(*flags["killed"]), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
        )
        while recorded_steps(tmp_path / "killed") < moment:
            assert process.poll() is None, "the study ended before it could be killed"
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shown = ablate(*flags["killed"])
    assert shown.returncode == 0, shown.stderr
    assert table(tmp_path / "killed") == table(tmp_path / "whole") and len(table(tmp_path / "whole")) == 2
    if together == 2:
        return
    shown = ablate(*flags["jobs"], "--jobs=2")
    assert shown.returncode == 0, shown.stderr
    assert table(tmp_path / "jobs") == table(tmp_path / "whole")
    command_line = json.loads((tmp_path / "jobs" / "results.json").read_text())["repeat"]["command"]
    assert "--jobs=2" in command_line and "--shard" not in command_line
