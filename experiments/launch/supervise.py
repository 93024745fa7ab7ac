"""Runs a launch to its end: starts each slice, watches it, starts it again, and leaves nothing running."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from experiments.launch.clock import Clock, Timing
from experiments.launch.description import SAVED, Launch, Slice, slices
from experiments.launch.gcloud import CloudError
from experiments.launch.interrupts import ignored_signals, signals_as_interrupts
from experiments.launch.outcome import Decision, Observation, decide
from gpt_jax.config.errors import UserError

CRASHES = 3  # a command that crashes so often in a row would do so for ever
PROGRESS = 1800.0  # a try that ran for so many seconds starts the waits from the beginning
LAST_LINES = 25


class Machines(Protocol):
    """What a target offers. `name` is a slice's."""

    margin: float  # seconds before the limit at which a machine itself asks its command to save

    def start(self, slice_: Slice, attempt: int, seconds: float | None) -> None:
        """Makes a slice that runs its command once. Raises CloudError."""

    def look(self, slice_: Slice, attempt: int) -> Observation:
        """What the slice and its workers tell. Raises CloudError."""

    def remove(self, slice_: Slice) -> None:
        """Ends the slice, and returns once it is gone. Raises UserError if it may still be running."""

    def log(self, slice_: Slice, attempt: int, worker: int, start: int) -> str:
        """A worker's output from byte `start` on; "" if there is none. Raises CloudError."""

    def read_state(self, slice_: Slice) -> dict[str, Any] | None: ...

    def write_state(self, slice_: Slice, state: dict[str, Any]) -> None: ...


@dataclass
class Progress:
    """Where a slice is. `used` counts the seconds on a machine, over all tries."""

    slice: Slice
    attempt: int = 0
    used: float = 0.0
    tries: int = 0
    crashes: int = 0
    failures: int = 0
    next_start: float = 0.0
    is_up: bool = False
    started: float = 0.0
    looked: float | None = None
    first_failure: float | None = None
    shown: int = 0
    beats: dict[int, tuple[int, float]] = field(default_factory=dict)
    code: int | None = None


def whole_lines(text: str) -> str:
    """The text up to its last line's end: the rest, maybe half a character, is read again with the next look."""
    return text[: text.rfind("\n") + 1]


class Supervisor:
    """Runs the slices of a launch.

    Args:
      adopt: take over slices that a launcher which is gone left running.
    """

    def __init__(
        self,
        launch: Launch,
        machines: Machines,
        clock: Clock,
        timing: Timing,
        show: Callable[[str], None],
        adopt: bool = False,
    ) -> None:
        self._launch, self._machines, self._clock, self._timing = launch, machines, clock, timing
        self._show, self._adopt = show, adopt
        self._chance = random.Random()
        self._all = [Progress(slice_) for slice_ in slices(launch)]

    def run(self) -> int:
        """The exit code: 0 if all slices finished, else that of the first one that did not."""
        with signals_as_interrupts():
            try:
                for one in self._all:
                    self._recall(one)
                while any(one.code is None for one in self._all):
                    for one in self._all:
                        if one.code is None:
                            self._advance(one)
                    if any(one.code is None for one in self._all):
                        self._clock.sleep(self._timing.poll)
            finally:
                self._clean()
        return next((one.code for one in self._all if one.code), 0)

    def _recall(self, one: Progress) -> None:
        """Goes on counting where an earlier launcher of this name stopped."""
        state = self._machines.read_state(one.slice)
        if state is None:
            return
        one.attempt = state["attempt"]
        if not self._adopt or state["code"] is not None:
            return
        seen = self._machines.look(one.slice, one.attempt)
        has_ended = bool(seen.records) and all(record.code is not None for record in seen.records)
        if seen.machine == "absent" and not has_ended:
            return
        if state["command"] != list(one.slice.command):
            raise UserError(f"{one.slice.name} runs another command: stop it, or choose another --name")
        one.used, one.tries = state["used"], state["tries"]
        one.is_up, one.started = True, self._clock.now()
        self._say(one, f"goes on with attempt {one.attempt}")

    def _advance(self, one: Progress) -> None:
        if not one.is_up:
            if self._clock.now() >= one.next_start:
                self._start(one)
            return
        decision = Decision("wait")
        try:
            seen = self._with_times(one, self._machines.look(one.slice, one.attempt))
            decision = decide(seen, self._timing)
            self._follow(one, seen)
        except CloudError as error:
            if error.kind != "unreachable":
                raise
            self._say(one, f"cannot be seen: {error}")
        self._count(one)
        left = self._seconds_left(one)
        if decision.kind == "wait" and left is not None and left <= 0:
            decision = Decision("stop", "the limit of hours or cost is reached: run it again to go on", code=SAVED)
        self._act(one, decision)

    def _start(self, one: Progress) -> None:
        left = self._seconds_left(one)
        if left is not None and left <= self._machines.margin:
            self._end(one, Decision("stop", "the limit of hours or cost is reached: run it again to go on", code=SAVED))
            return
        one.attempt += 1
        one.is_up = True  # before the call: after Ctrl-C in it, the slice may exist
        try:
            self._machines.start(one.slice, one.attempt, None if left is None else left - self._machines.margin)
        except CloudError as error:
            one.is_up = error.kind == "unreachable"  # no answer: it may have been made
            if error.kind == "taken":
                raise UserError(
                    f"{one.slice.name} is already launched: watch it with logs -f, end it with stop, go on with it by "
                    "--adopt, or choose another --name"
                ) from None
            if error.kind in ("capacity", "unreachable"):
                self._again(one, Decision("again", str(error)))
                return
            self._end(one, Decision("stop", str(error), code=1))
            return
        one.started, one.looked, one.first_failure, one.shown = self._clock.now(), None, None, 0
        one.beats.clear()
        self._save(one, "requested")
        self._say(one, f"attempt {one.attempt} is requested")

    def _with_times(self, one: Progress, seen: Observation) -> Observation:
        """Adds what only a clock knows."""
        now = self._clock.now()
        if seen.machine == "running":
            if one.looked is None:
                one.started = one.looked = now
                self._say(one, "running")
                self._save(one, "running")
        for record in seen.records:
            if record.worker not in one.beats or one.beats[record.worker][0] != record.beat:
                one.beats[record.worker] = record.beat, now
        if one.first_failure is None and any(record.code for record in seen.records):
            one.first_failure = now
        return replace(
            seen,
            silence={worker: now - since for worker, (_, since) in one.beats.items()},
            since_active=now - one.started,
            since_failure=0.0 if one.first_failure is None else now - one.first_failure,
        )

    def _count(self, one: Progress) -> None:
        """Counts the time on the machine, which costs also while it cannot be seen."""
        if one.looked is not None:
            now = self._clock.now()
            one.used += now - one.looked
            one.looked = now

    def _follow(self, one: Progress, seen: Observation) -> None:
        """Shows what worker 0 has written since the last look."""
        if any(record.worker == 0 for record in seen.records):
            text = whole_lines(self._machines.log(one.slice, one.attempt, 0, one.shown))
            one.shown += len(text.encode(errors="surrogateescape"))
            for line in text.splitlines():
                self._show(line if len(self._all) == 1 else f"[{one.slice.name}] {line}")

    def _act(self, one: Progress, decision: Decision) -> None:
        if decision.kind == "finished":
            self._end(one, decision)
        elif decision.kind == "stop":
            if decision.worker is not None:
                self._show_last(one, decision.worker)
            self._end(one, decision)
        elif decision.kind == "again":
            one.crashes = one.crashes + 1 if decision.is_crash else 0
            if one.crashes == CRASHES and decision.worker is not None:
                self._show_last(one, decision.worker)
                self._end(one, replace(decision, kind="stop"))
            else:
                self._again(one, decision)

    def _again(self, one: Progress, decision: Decision) -> None:
        one.tries += 1
        if one.tries > self._launch.retries:
            reason = f"{decision.reason}; {self._launch.retries} retries are used up: run it again to go on"
            self._end(one, replace(decision, kind="stop", reason=reason, code=SAVED))
            return
        self._remove(one)
        one.failures = 1 if self._clock.now() - one.started > PROGRESS else one.failures + 1
        wait = self._timing.wait(one.failures, self._chance)
        one.next_start = self._clock.now() + wait
        self._say(one, f"{decision.reason}: starts again in {wait:.0f} seconds ({one.tries}/{self._launch.retries})")
        self._save(one, "waiting")

    def _end(self, one: Progress, decision: Decision) -> None:
        self._remove(one)
        one.code = decision.code
        self._say(one, decision.reason or "finished")
        self._save(one, "finished" if decision.kind == "finished" else "stopped", decision.reason)

    def _show_last(self, one: Progress, worker: int) -> None:
        self._say(one, f"worker {worker} failed first; its last lines:")
        try:
            text = self._machines.log(one.slice, one.attempt, worker, 0)
        except CloudError as error:
            text = f"(cannot be read: {error})"
        for line in text.splitlines()[-LAST_LINES:]:
            self._show(f"  {line}")

    def _remove(self, one: Progress) -> None:
        if one.is_up:
            self._machines.remove(one.slice)
            one.is_up = False

    def _clean(self) -> None:
        """Removes what is left after an error or an interrupt; a second Ctrl-C does not stop it."""
        left = [one for one in self._all if one.is_up]
        names = ", ".join(one.slice.name for one in left)
        failures = []
        with ignored_signals(lambda: self._show(f"still ending {names}: without it they would go on costing")):
            if left:
                self._show(f"ending {names}; please wait")
            for one in left:
                try:
                    self._remove(one)
                    self._save(one, "stopped", "interrupted")
                except UserError as error:
                    failures.append(str(error))
        if failures:
            raise UserError("; ".join(failures))

    def _seconds_left(self, one: Progress) -> float | None:
        hours = self._launch.hours
        return None if hours is None else hours * 3600 - one.used

    def _save(self, one: Progress, state: str, reason: str = "") -> None:
        values = {
            "state": state,
            "reason": reason,
            "attempt": one.attempt,
            "used": round(one.used),
            "tries": one.tries,
            "code": one.code,
            "updated": round(self._clock.now()),
            "command": list(one.slice.command),
        }
        try:
            self._machines.write_state(one.slice, values)
        except CloudError as error:  # the slice matters more than what is told of it
            self._say(one, f"its state cannot be written: {error}")

    def _say(self, one: Progress, text: str) -> None:
        self._show(f"{one.slice.name}: {text}")
