"""Several real processes compute one run: their numbers are those of one process, and they stop and end together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpt_jax.ablation import records
from gpt_jax.ablation.combine import vary
from gpt_jax.ablation.findings import StudyResults
from gpt_jax.ablation.plan import make_plan
from gpt_jax.ablation.results import write_results
from gpt_jax.ablation.runner import Runner, write_plan
from gpt_jax.ablation.schema import RESULTS, Grouping
from gpt_jax.ablation.study import Study
from gpt_jax.config import Adamw, Config, Suites
from gpt_jax.runs.evaluate import evaluate_run
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.goodput import GOODPUT
from gpt_jax.runs.load import load_run
from gpt_jax.runs.preserve import read_record
from gpt_jax.runs.sealed import sealed
from gpt_jax.runs.train import train
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[2]
STEPS = 16
CONFIG = """
from gpt_jax.config.conversion import to_config_dict
from tests.runs.test_processes import config
def get_config(): return to_config_dict(config(STEPS))
"""
STUDY = """
from gpt_jax.config.conversion import to_config_dict
from tests.runs.test_processes import config, small_study
def get_config(): return to_config_dict(config(4))
def get_study(base): return small_study()
"""
# Runs a command after `patch`, Python code; `id` is the number of the process.
PROGRAM = """
import runpy, sys, time
from gpt_jax.data import Data
from gpt_jax.runs import folder
id = int(sys.argv[1])
{patch}
sys.argv = [sys.argv[2], *sys.argv[3:]]
runpy.run_module("experiments." + sys.argv[0], run_name="__main__")
"""
BEFORE_A_BATCH = """
given = Data.batch
def batch(data, step, *share):
    {}
    return given(data, step, *share)
Data.batch = batch
"""
SLOW = BEFORE_A_BATCH.format("time.sleep(0.5 * id)")  # process 1 makes the others wait
BROKEN = BEFORE_A_BATCH.format("assert id == 0 or step < 3, 'a bug'")


class Processes:
    """A command of `experiments` in `count` processes of `devices` devices each, except those in `missing`."""

    def __init__(
        self, folder: Path, count: int, devices: int, name: str, *flags: str, patch: str = "", missing: int = -1,
        of_each: Callable[[int], list[str]] = lambda i: [],
    ) -> None:  # fmt: skip
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        (folder / "config.py").write_text(CONFIG.replace("STEPS", str(STEPS)))
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(ROOT),
        }
        self.outputs = {i: folder / f"output{i}" for i in range(count) if i != missing}
        self.started = []
        for i, output in self.outputs.items():
            together = [f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={i}"]
            command = [sys.executable, "-c", PROGRAM.format(patch=patch), str(i), name, *flags, *together, *of_each(i)]
            with output.open("w") as file:
                self.started.append(
                    subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
                )

    def wait(self, seconds: float = 200) -> list[int]:
        """The exit codes, once all have ended."""
        try:
            end = time.monotonic() + seconds
            return [process.wait(max(0.0, end - time.monotonic())) for process in self.started]
        finally:
            for process in self.started:
                process.kill()

    def said(self, i: int) -> str:
        return self.outputs[i].read_text()


def until(condition: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def lines(folder: Path) -> list[dict[str, Any]]:
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record for record in found if record["split"] != GOODPUT]


def config(steps: int, **changes: Any) -> Config:
    """Sums in another order change a loss by 1e-5 only after many updates at this rate."""
    suites = Suites("copy", every=4, questions=6)
    return tiny_config(steps=steps, optimizer=Adamw(learning_rate=1e-3), suites=suites, **changes)


def small_study() -> Study:
    knob = "model.attention.kv_heads"
    return Study("Fewer?", config(4), vary(knob, mha=2, mqa=1), "mha", (knob,), 0.01, seeds=(0, 1), fresh_seeds=0)


def quietly(steps: int, folder: Path, **changes: Any) -> None:
    train(config(steps, **changes), folder, console=Console(quiet=True))


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def make_best(run: Path, step: int) -> None:
    """Makes the checkpoint of `step` the one of the lowest validation loss."""
    fingerprints = read_record(RunFolder(run), step).fingerprints
    (run / "checkpoints" / str(step) / "record" / "metadata").write_text(
        json.dumps(sealed(step, 0.5, fingerprints, {}))
    )


def assert_same(found: Path, expected: Path) -> None:
    one, other = lines(expected), lines(found)
    assert [(r["step"], r["split"]) for r in other] == [(r["step"], r["split"]) for r in one]
    for key in ("loss", "accuracy", "copy/accuracy"):
        expected_values = [r[key] for r in one if key in r]
        assert [r[key] for r in other if key in r] == pytest.approx(expected_values, rel=1e-5), key


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process with 4 devices, after 2 and then 16 steps."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    quietly(2, folder)
    quietly(STEPS, folder)
    return folder


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that one process begins, and that goes on in 2 × 2, 2 × 2 and 4 × 1 processes × devices. Process 1 is slow;
    it is killed first, and then it alone gets SIGTERM. From then on parameters are divided over processes, and in the
    end two processes share their rows. And what was seen.
    """
    folder = tmp_path_factory.mktemp("story")
    run, seen = folder / "run", {}
    quietly(2, run)
    make_best(run, 2)
    flags = ["train", "--config=config.py", f"--workdir={run}"]

    two = Processes(folder, 2, 2, *flags, patch=SLOW)
    until(lambda: max(steps_of(run)) >= 4)
    two.started[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    seen["killed"] = two.wait()
    seen["seconds"], seen["said"] = time.monotonic() - killed, two.said(0)

    divided = Processes(folder, 2, 2, *flags, "--config.mesh=data=2,fsdp=2", patch=SLOW)
    until(lambda: max(steps_of(run)) >= 6)
    divided.started[1].send_signal(signal.SIGTERM)
    seen["stopped"], seen["saved"] = divided.wait(), max(steps_of(run))
    seen["stop"] = divided.said(0), divided.said(1)

    four = Processes(folder, 4, 1, *flags, "--config.mesh=data=2,tensor=2")
    seen["finished"] = four.wait()
    seen["outputs"] = [four.said(i) for i in range(4)]
    return run, seen


@pytest.mark.slow
def test_all_of_it_has_the_numbers_of_one_process(story: tuple[Path, dict[str, Any]], reference: Path) -> None:
    run, seen = story
    assert seen["finished"] == [0] * 4, seen["outputs"]
    assert_same(run, reference)


@pytest.mark.slow
def test_the_others_of_one_that_is_killed_end_within_a_minute_and_say_why(story: tuple[Path, dict[str, Any]]) -> None:
    _, seen = story
    assert seen["killed"] == [75, -signal.SIGKILL], seen["said"]
    assert seen["seconds"] < 60
    assert seen["said"].splitlines()[-1].startswith("train: process 1 of 2, on ")
    assert "Traceback" not in seen["said"]


@pytest.mark.slow
def test_all_save_the_same_step_when_one_gets_a_signal(story: tuple[Path, dict[str, Any]]) -> None:
    _, seen = story
    assert seen["stopped"] == [75, 75], seen["stop"]
    assert 6 < seen["saved"] < STEPS
    assert f"interrupted after step {seen['saved']}" in seen["stop"][0]


@pytest.mark.slow
def test_the_best_checkpoint_stays_whoever_goes_on(story: tuple[Path, dict[str, Any]]) -> None:
    """Through a kill, a signal and three layouts."""
    run, seen = story
    assert steps_of(run) == [2, STEPS], seen["outputs"]
    assert load_run(run, step=2)


@pytest.mark.slow
def test_process_0_alone_prints(story: tuple[Path, dict[str, Any]]) -> None:
    _, seen = story
    first, *others = seen["outputs"]
    assert "processes  4" in first and "validation loss" in first
    assert not any("loss" in other or "processes" in other for other in others)


@pytest.mark.slow
def test_one_process_goes_on_where_four_ended(
    story: tuple[Path, dict[str, Any]], reference: Path, tmp_path: Path
) -> None:
    for name, folder in (("four", story[0]), ("one", reference)):
        shutil.copytree(folder, tmp_path / name)
        quietly(STEPS + 3, tmp_path / name, mesh="fsdp=4")
    assert_same(tmp_path / "four", tmp_path / "one")


@pytest.mark.slow
def test_evaluation_agrees(reference: Path, tmp_path: Path) -> None:
    shutil.copytree(reference, tmp_path / "run")
    _, expected = evaluate_run(reference)
    two = Processes(tmp_path, 2, 2, "evaluate", f"--workdir={tmp_path / 'run'}")
    assert two.wait() == [0, 0], two.said(0) + two.said(1)
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found == {"step": STEPS} | {name: pytest.approx(value, rel=1e-6) for name, value in expected.items()}


@pytest.mark.slow
def test_the_others_of_process_0_say_why_too(tmp_path: Path) -> None:
    """Though JAX aborts as soon as its service, which process 0 holds, is gone."""
    run = tmp_path / "run"
    two = Processes(tmp_path, 2, 2, "train", "--config=config.py", f"--workdir={run}", patch=SLOW)
    until(lambda: (run / "checkpoints" / "2").exists())
    two.started[0].send_signal(signal.SIGKILL)
    assert two.wait(60) == [-signal.SIGKILL, 75], two.said(1)
    assert two.said(1).splitlines()[-1].startswith("train: process 0 of 2, on ")


@pytest.mark.slow
def test_a_study_comes_out_the_same(tmp_path: Path) -> None:
    """With the seeds grouped as process 0 has timed them."""
    (tmp_path / "study.py").write_text(STUDY)
    two = Processes(tmp_path, 2, 2, "ablate", "--config=study.py", f"--workdir={tmp_path / 'two'}")
    assert two.wait() == [0, 0], two.said(0) + two.said(1)
    plan = make_plan(small_study())
    write_plan(plan, tmp_path / "one", "", Grouping(1, "", ""), False)
    assert Runner(plan, tmp_path / "one", Console(quiet=True)).run() == "finished"
    one, other = write_results(tmp_path / "one"), records.read(StudyResults, RunFolder(tmp_path / "two"), RESULTS)
    for arm, again in zip(one.arms, other.arms, strict=True):
        assert again.values == pytest.approx(arm.values, rel=1e-5)
    assert (tmp_path / "two" / "report.html").exists()


@pytest.mark.slow
def test_a_bug_in_one_ends_all(tmp_path: Path) -> None:
    two = Processes(tmp_path, 2, 2, "train", "--config=config.py", f"--workdir={tmp_path / 'run'}", patch=BROKEN)
    assert two.wait(100) == [1, 1]
    assert "Traceback" in two.said(1) and "AssertionError: a bug" in two.said(1)
    last = two.said(0).splitlines()[-1]
    assert last.startswith("train: process 1 of 2, on ")
    assert last.endswith(" failed, so this one stops too: AssertionError: a bug")


@pytest.mark.slow
def test_processes_with_other_settings_are_refused(tmp_path: Path) -> None:
    flags = ["train", "--config=config.py", f"--workdir={tmp_path / 'run'}"]
    two = Processes(tmp_path, 2, 2, *flags, of_each=lambda i: [f"--config.seed={i}"])
    assert two.wait(100) == [1, 1]
    assert "process 1 has another configuration than process 0" in two.said(0)


@pytest.mark.slow
def test_processes_with_folders_of_their_own_are_refused(tmp_path: Path) -> None:
    two = Processes(
        tmp_path,
        2,
        2,
        "train",
        "--config=config.py",
        patch="folder.VISIBLE_SECONDS = 1.0",
        of_each=lambda i: [f"--workdir={tmp_path}/run{i}"],
    )
    assert two.wait(100) == [1, 1]
    assert "process 1 does not see what process 0 writes to --workdir" in two.said(0)


@pytest.mark.slow
@pytest.mark.parametrize("missing", [0, 1])
def test_a_host_that_does_not_come(missing: int, tmp_path: Path) -> None:
    flags = ["train", "--config=config.py", f"--workdir={tmp_path / 'run'}", "--start_timeout=3"]
    here = Processes(tmp_path, 2, 2, *flags, missing=missing)
    assert here.wait(100) == [75]
    (line,) = here.said(1 - missing).splitlines()
    assert line.startswith("train: not all of the 2 processes that are to meet at localhost:")
    assert "have come within 3 seconds" in line
