"""The watchdog: a hang is told with the stacks of all threads, once; a healthy run hears nothing of it."""

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpt_jax.config import Watchdog
from gpt_jax.runs import watchdog
from gpt_jax.runs.folder import HANGS, RunFolder
from gpt_jax.runs.goodput import CHECKPOINT, DATA, INIT, STEPS, Stopwatch
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.train import train
from gpt_jax.runs.watchdog import HUNG, HangWatch
from tests.runs.test_processes import BEFORE_A_BATCH, Processes
from tests.tiny import PROGRAMS, tiny_config

QUICK = Watchdog(factor=2.0, floor_seconds=1.0, pause_seconds=60.0)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def hangs(folder: Path) -> list[Path]:
    return sorted((folder / HANGS).glob("*")) if (folder / HANGS).exists() else []


def test_each_phase_has_its_bound(tmp_path: Path) -> None:
    """Steps: a multiple of the median, once there is one; the pauses between them count for one step each at most."""
    watch = Stopwatch()
    dog = HangWatch(Watchdog(factor=10.0, floor_seconds=2.0, pause_seconds=99.0), watch, RunFolder(tmp_path))
    assert [dog.limit(phase) for phase in (INIT, CHECKPOINT, DATA, STEPS)] == [99.0] * 4
    watch.laps.extend([0.1, 0.1, 50.0, 0.1, 0.1])
    assert [dog.limit(phase) for phase in (CHECKPOINT, DATA, STEPS)] == [99.0, 2.0, 2.0]
    watch.laps.extend([3.0] * 20)
    assert dog.limit(STEPS) == 30.0
    watch.since = 0.0
    for step, now in enumerate((1.0, 1.5, 9.0), 7):
        watch.since = now
        watch.end_step(step)
    assert list(watch.laps)[-2:] == [0.5, 7.5] and watch.step == 9


def test_a_hanging_step_is_told_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The thread that hangs in a step is let go by the test when the stacks are there."""
    let_go, found = threading.Event(), []

    def requested(self: Interrupts, step: int) -> bool:
        if step == 8:
            assert let_go.wait(60)
            time.sleep(1.0)  # a hang that lasts is not told again
        return False

    def helper() -> None:
        until(lambda: bool(hangs(tmp_path)) and b"requested" in hangs(tmp_path)[0].read_bytes())
        found.append(True)
        let_go.set()

    monkeypatch.setattr(Interrupts, "requested", requested)
    thread = threading.Thread(target=helper)
    thread.start()
    config = dataclasses.replace(tiny_config(steps=12), watchdog=QUICK)
    outcome = train(config, tmp_path, console=Console(quiet=True), programs=PROGRAMS)
    thread.join()
    assert outcome.status == "finished" and found == [True]
    assert [path.name for path in hangs(tmp_path)] == ["step-7-process-0.txt"]
    text, told = hangs(tmp_path)[0].read_text(), capfd.readouterr().err
    assert "(phase steps, after step 7)" in text and 'test_watchdog.py", line' in text and "run_steps" in text
    assert told.count("watchdog: nothing has ended for") == 1 and text.splitlines()[-1] in told
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]


def test_a_data_source_that_hangs_ends_the_process_by_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so to the other processes first, and leaves time for their stacks."""
    calls: list[Any] = []
    let_go = threading.Event()

    def fail(code: int, reason: str) -> None:
        calls.append((code, reason))

    def leave(code: int) -> None:
        calls.append(code)
        let_go.set()

    monkeypatch.setattr(watchdog.processes, "fail", fail)
    monkeypatch.setattr(watchdog, "_exit", leave)
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 0.05)
    watch = Stopwatch()
    watch.laps.extend([0.01] * 5)
    with HangWatch(dataclasses.replace(QUICK, abort=True), watch, RunFolder(tmp_path)):
        watch.switch(DATA)
        assert let_go.wait(60)
    assert calls == [(HUNG, "it hung (phase data, after step 0), and its watchdog ended it"), HUNG]
    assert hangs(tmp_path)


def test_a_healthy_run_is_left_in_peace(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Steps, and a pause longer than a step's bound; and without `factor` there is no thread."""
    watch = Stopwatch()
    watch.laps.extend([0.01] * 5)
    with HangWatch(dataclasses.replace(QUICK, floor_seconds=1.5), watch, RunFolder(tmp_path)):
        for _ in range(20):
            watch.switch(STEPS)
            time.sleep(0.01)
            watch.switch(DATA)
        watch.switch(CHECKPOINT)
        time.sleep(2.0)
    with HangWatch(Watchdog(factor=None), watch, RunFolder(tmp_path)) as off:
        assert off._thread is None
    assert not hangs(tmp_path) and capfd.readouterr().err == ""


# The data of process 1 hangs, and so process 0 waits for it in a step; every process writes its stacks and ends.
HANGING = BEFORE_A_BATCH.format("id == 1 and step == 10 and time.sleep(1000)") + (
    "\nfrom gpt_jax.runs import watchdog\nwatchdog.GRACE_SECONDS = 4.0\n"
)


@pytest.mark.slow
def test_all_processes_of_a_run_that_hangs_end_with_the_code_and_leave_their_stacks(tmp_path: Path) -> None:
    knobs = ["--config.watchdog.floor_seconds=3.0", "--config.watchdog.abort=True", "--config.watchdog.factor=3.0"]
    flags = ["--config=config.py", f"--workdir={tmp_path}/run", *knobs]
    processes = Processes(tmp_path, 2, 1, "train", *flags, patch=HANGING)
    codes = processes.wait()
    assert codes == [HUNG, HUNG], processes.said(0) + processes.said(1)
    first, second = (next((tmp_path / "run" / HANGS).glob(f"*-process-{i}.txt")).read_text() for i in (0, 1))
    assert "(phase data, after step 10)" in second and "run_steps" in first and "run_steps" in second
    said = processes.said(0) + processes.said(1)
    assert "it hung" in said and "Traceback" not in said
