"""Goodput: every second of a run is in one phase, over all of its starts, and what a killed start lost is told."""

import io
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from gpt_jax.config import Checkpoint, Config, Evaluation
from gpt_jax.runs import goodput, metrics, session
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.goodput import COMPILE, DATA, GOODPUT, IDLE, INIT, LOST, PHASES, STEPS, Goodput, Stopwatch, carried
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.train import train
from tests.tiny import PROGRAMS, tiny_config


def record(step: int, at: float, **seconds: float) -> dict[str, Any]:
    wall = sum(seconds.values())
    shares = {phase: seconds.get(phase, 0.0) / wall for phase in PHASES}
    return {"step": step, "split": GOODPUT, "time": at, "wall_seconds": wall, **shares}


def test_the_phases_of_a_stopwatch_sum_to_the_time_that_passed() -> None:
    began = time.monotonic() - 2.0
    watch = Stopwatch(began)
    for phase in (DATA, STEPS) * 50:
        watch.switch(phase)
    time.sleep(0.02)
    found = watch.seconds()
    assert sum(found.values()) == pytest.approx(time.monotonic() - began, abs=5e-3)
    assert found[INIT] >= 2.0 and found[STEPS] >= 0.02 and found[COMPILE] == 0.0


def test_compilation_is_taken_out_of_its_phase_and_none_of_it_counts_twice() -> None:
    """A program that calls another is traced around the other's tracing."""
    watch = Stopwatch(100.0)
    watch.switch(STEPS)
    watch.since = 110.0
    watch.compiled(113.0, 1.0)  # inside the next one
    watch.compiled(114.0, 3.0)
    watch.compiled(116.0, 1.0)  # after it
    watch.compiled(117.0, 60.0)  # around all, and said to be longer than the phase
    assert watch._seconds[COMPILE] == pytest.approx(7.0) and watch._seconds[STEPS] == pytest.approx(-7.0)

    real = Stopwatch()
    with real.compilation():
        real.switch(STEPS)
        inner = jax.jit(lambda x: jnp.tanh(x) * 3)
        jax.jit(lambda x: inner(inner(x)) + 1)(jnp.ones(3))
    total = real.seconds()
    assert 0 < total[COMPILE] and total[STEPS] >= 0
    after = real.seconds()[COMPILE]
    jax.jit(lambda x: x - 17)(jnp.ones(3))
    assert real.seconds()[COMPILE] == after  # closed: it listens no more


def test_work_after_the_checkpoint_that_a_start_goes_on_from_is_lost() -> None:
    """Compilation and initialization of the killed start were no steps, and are not called lost."""
    first = [
        record(4, 1000.0, init=5, compile=10, steps=40, data=5),
        record(7, 1050.0, init=5, compile=12, steps=83, data=10),
    ]
    before = carried(first, 4, 1060.0)
    assert before == pytest.approx(
        {**dict.fromkeys(PHASES, 0.0), INIT: 5, COMPILE: 12, STEPS: 40, DATA: 5, LOST: 48, IDLE: 10}
    )
    # A second start saves at 6 and is killed at 8; the third goes on from 6. Step 7 of the first start is older.
    second = [record(6, 1100.0, init=9, compile=12, steps=60, data=7, lost=48, idle=10),
              record(8, 1130.0, init=9, compile=12, steps=85, data=8, lost=48, idle=10)]  # fmt: skip
    third = carried([*first, *second], 6, 1100.0)  # the clock was set back
    assert (
        third[STEPS] == pytest.approx(60) and third[LOST] == pytest.approx(48 + 26) and third[IDLE] == pytest.approx(10)
    )
    # All checkpoints but that of step 4 are damaged.
    assert carried([*first, *second], 4, 1130.0)[LOST] == pytest.approx(48 + 48)
    assert carried([*first, *second], 0, 1130.0)[STEPS] == 0
    assert carried([], 0, 1130.0) == dict.fromkeys(PHASES, 0.0)


def long(steps: int, **changes: Any) -> Config:
    never = Evaluation(every=100, batch_size=8)
    return tiny_config(steps=steps, evaluation=never, checkpoint=Checkpoint(every=4), **changes)


def test_a_run_accounts_for_its_wall_time_over_its_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start is killed two steps after its checkpoint; the next one finishes."""
    monkeypatch.setattr(goodput, "RECORD_SECONDS", 0.0)
    monkeypatch.setattr(session, "plot_loss", lambda folder: "")  # after the end of the account
    began, output = time.monotonic(), io.StringIO()

    def killed(self: Interrupts, step: int) -> bool:
        if step == 7:
            raise RuntimeError("killed")
        time.sleep(0.05)
        return False

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(Interrupts, "requested", killed)
        train(long(12), tmp_path, console=Console(quiet=True), programs=PROGRAMS)
    time.sleep(0.3)
    train(long(12), tmp_path, console=Console(file=output, width=200), programs=PROGRAMS)
    wall = time.monotonic() - began
    records = metrics.read(RunFolder(tmp_path), GOODPUT)
    last = max(records, key=lambda r: r["wall_seconds"])
    assert last["step"] == 12
    assert all(sum(r[phase] for phase in PHASES) == pytest.approx(1, abs=1e-9) for r in records)
    assert all(-1e-9 <= r[phase] <= 1 for r in records for phase in PHASES)
    assert last["wall_seconds"] == pytest.approx(wall, rel=0.01, abs=0.1)
    seconds = {phase: last[phase] * last["wall_seconds"] for phase in PHASES}
    assert 0.25 <= seconds[IDLE] <= 0.8
    assert seconds[LOST] >= 0.1  # steps 5 and 6, at 0.05 s each
    assert seconds[STEPS] >= 0.2 and seconds["checkpoint"] > 0 and seconds["evaluation"] > 0
    banner, closing = output.getvalue().rsplit("step 12/12", 1)
    assert "until now" in banner and f"{last[STEPS]:.1%} of 0:00:" in closing and f"{last[LOST]:.1%} lost" in closing
    assert [r["step"] for r in metrics.read(RunFolder(tmp_path)) if r["split"] == "train"] == list(range(1, 13))
    assert {r["split"] for r in metrics.read(RunFolder(tmp_path))} == {"train", "validation"}


def test_records_come_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr(goodput.time, "monotonic", lambda: now[0])
    found = Goodput(Stopwatch(), [], 0)
    due = []
    for _ in range(30):
        now[0] += 1.0
        found.stopwatch.switch(DATA)
        due.append(found.is_due())
        if due[-1]:
            found.record(1)
    assert sum(due) == 6
