"""Goodput: the shares of a run's wall time in training, and in everything else.

A stopwatch is in exactly one phase at each moment, so the phases sum to the wall time by construction. Compilation,
which JAX reports when it is over, is taken out of the phase in which it happened. Records of the split `goodput` in
metrics.jsonl state the shares of the whole run so far, over all of its starts, so that a start continues from the
records of the earlier ones.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax

GOODPUT = "goodput"  # the split of these records
INIT, COMPILE, DATA, STEPS = "init", "compile", "data", "steps"
EVALUATION, CHECKPOINT, LOST, IDLE = "evaluation", "checkpoint", "lost", "idle"
# In the order of their display. DATA is the wait for the next batch, LOST the work after the checkpoint from which a
# later start went on, and IDLE the time between starts.
PHASES = (STEPS, DATA, EVALUATION, CHECKPOINT, COMPILE, INIT, LOST, IDLE)
REDONE = (DATA, STEPS, EVALUATION, CHECKPOINT)  # what a start does again after the checkpoint that it goes on from
RECORD_SECONDS = 5.0  # a killed start's time since its last record counts as idle, so records are this frequent
LAPS = 101
COMPILATION = "/jax/core/compile/"  # JAX's events of tracing, lowering and compiling begin so


class Stopwatch:
    """Divides the time since its creation, or since `began` by `time.monotonic`, into phases. It begins in INIT.

    Another thread, the watchdog, reads `phase`, `since`, `switches`, `step` and `laps`.
    """

    def __init__(self, began: float | None = None) -> None:
        self.began = self.since = time.monotonic() if began is None else began
        self.phase = INIT
        self.switches = 0
        self.step = 0  # the last step that ended
        self.laps: deque[float] = deque(maxlen=LAPS)  # seconds of the last steps
        self._lap_began: float | None = None
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._compiled: list[tuple[float, float]] = []  # (begin, seconds) of compilations; those inside others are not
        self._thread = threading.get_ident()

    def switch(self, phase: str) -> None:
        """Ends the current phase and begins another one."""
        now = time.monotonic()
        self._seconds[self.phase] += now - self.since
        self.phase, self.since = phase, now
        self.switches += 1

    def end_step(self, step: int) -> None:
        """To be called at the end of a step, before the switch to another phase."""
        if self._lap_began is not None:
            self.laps.append(self.since - self._lap_began)
        self.step, self._lap_began = step, self.since

    def seconds(self) -> dict[str, float]:
        """Phase → seconds until now; they sum to the time since the beginning."""
        self.switch(self.phase)
        return dict(self._seconds)

    @contextmanager
    def compilation(self) -> Iterator[None]:
        """While it is open, compilations of this thread count as COMPILE."""
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(self._heard)

    def _heard(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith(COMPILATION) and threading.get_ident() == self._thread:
            self.compiled(time.monotonic(), duration_secs)

    def compiled(self, now: float, seconds: float) -> None:
        """Moves the last `seconds` of the current phase to COMPILE, but none of it twice: tracing a program traces
        those that it calls.
        """
        begin = min(max(now - seconds, self.since), now)  # JAX measures by the date, which may jump
        inside = 0.0
        while self._compiled and self._compiled[-1][0] >= begin:
            inside += self._compiled.pop()[1]
        self._compiled.append((begin, now - begin))
        moved = now - begin - inside
        self._seconds[COMPILE] += moved
        self._seconds[self.phase] -= moved


class Goodput:
    """The seconds of a run by phase: those of earlier starts, and those of this one by its stopwatch."""

    def __init__(self, stopwatch: Stopwatch, earlier: Sequence[Mapping[str, Any]], step: int) -> None:
        """`earlier` are the records of earlier starts; this one goes on after `step` updates."""
        self.stopwatch = stopwatch
        elapsed = time.monotonic() - stopwatch.began
        self.has_earlier = bool(earlier)
        self._before = carried(earlier, step, time.time() - elapsed)
        self._recorded = stopwatch.since

    def is_due(self) -> bool:
        """Whether the last record is RECORD_SECONDS old."""
        return self.stopwatch.since - self._recorded >= RECORD_SECONDS

    def record(self, step: int) -> dict[str, Any]:
        """The record after `step` updates: the wall time of the whole run, and the share of each phase in it."""
        now = self.stopwatch.seconds()
        self._recorded = self.stopwatch.since
        total = {phase: self._before[phase] + now[phase] for phase in PHASES}
        wall = sum(total.values())
        shares = {phase: total[phase] / wall if wall else 0.0 for phase in PHASES}
        return {"step": step, "split": GOODPUT, "time": time.time(), "wall_seconds": wall, **shares}


def carried(earlier: Sequence[Mapping[str, Any]], step: int, now: float) -> dict[str, float]:
    """Phase → seconds of the earlier starts of a run that goes on after `step` updates at the time `now`.

    The wall time of records only grows, over all starts, so it orders them, whatever the clock did.
    """
    if not earlier:
        return dict.fromkeys(PHASES, 0.0)
    order = sorted(earlier, key=lambda record: record["wall_seconds"])
    last = _seconds(order[-1])
    kept = next((_seconds(record) for record in reversed(order) if record["step"] <= step), dict.fromkeys(PHASES, 0.0))
    lost = {phase: last[phase] - kept[phase] for phase in REDONE}
    return {
        **last,
        **{phase: kept[phase] for phase in REDONE},
        LOST: last[LOST] + sum(lost.values()),
        IDLE: last[IDLE] + max(0.0, now - order[-1]["time"]),  # a clock that was set back tells nothing
    }


def _seconds(record: Mapping[str, Any]) -> dict[str, float]:
    return {phase: record[phase] * record["wall_seconds"] for phase in PHASES}


def describe(record: Mapping[str, Any]) -> str:
    """A record in words, such as "81.2% of 0:12:31 in steps; 10.1% compile, 8.7% init"."""
    wall = datetime.timedelta(seconds=round(record["wall_seconds"]))
    others = [(record[phase], phase) for phase in PHASES[1:] if record[phase] >= 0.0005]
    rest = ", ".join(f"{share:.1%} {phase}" for share, phase in sorted(others, reverse=True))
    return f"{record[STEPS]:.1%} of {wall} in steps" + (f"; {rest}" if rest else "")
