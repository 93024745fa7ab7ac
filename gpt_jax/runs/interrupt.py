"""Signals, and a terminal that vanishes, ask a run to save and stop. A second Ctrl-C ends the process at once.

In the loop of a run they only set a flag. Elsewhere a command has nothing to save: there, after `begin`, they raise
`Interrupted`. What has not ended a while later is ended by `runs/deadline.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import Any

import jax
from etils import epath

from gpt_jax.runs import processes
from gpt_jax.runs.deadline import Deadline
from gpt_jax.runs.folder import CHECKPOINTS, RunFolder

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OUTPUT_GONE = signal.SIGPIPE  # stands for an output that cannot be written to; the signal itself stays ignored
OWN_CODES = (signal.SIGHUP, OUTPUT_GONE)  # after a save too: nobody who starts the command again asked for the stop
STUCK_SECONDS = 60.0  # without a step, an evaluation or a growing checkpoint after the first signal
STUCK_STEPS = 3  # and at least as long as this many of the longest step

_deadline: Deadline | None = None  # of this process, once a command has begun
_loop: Interrupts | None = None  # the loop that is running
_first: signal.Signals | None = None


class Interrupted(KeyboardInterrupt):
    """A signal, or the loss of the output, outside of a loop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


class Interrupts:
    """A context manager in which the signals only set a flag; the loop reads it after each step.

    Several processes have to stop after the same step, so they agree on it through JAX's coordination service, which
    hears of SIGTERM by itself; the others are passed on to it. `folders` are those that the loop saves to.
    """

    _asked = 0  # how often this process has asked the others: as often as they

    def __init__(self, folders: Sequence[RunFolder] = ()) -> None:
        self.doing = "the first step"  # what the loop waits for
        self._folders = folders
        self._received = False
        self._answered: tuple[int, bool] | None = None
        self._previous: dict[int, Any] = {}
        self._notices = ExitStack()
        self._ended, self._longest = time.monotonic(), 0.0  # the last step, and the longest one but the first

    def __enter__(self) -> Interrupts:
        global _loop
        if threading.current_thread() is threading.main_thread():
            several = jax.process_count() > 1
            heard = [n for n in SIGNALS if not (several and n == signal.SIGTERM) and not _is_nohup(n)]
            self._previous = {number: signal.signal(number, self.receive) for number in heard}
            if several:
                self._notices.enter_context(processes.preemption_notices())
            _loop = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _loop
        _loop = None
        self._notices.close()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Whether to stop after `step` updates. All runs of a group get the same answer for a step."""
        if self._answered is None or self._answered[0] != step:
            now = time.monotonic()
            if self._answered is not None:
                self._longest = max(self._longest, now - self._ended)
            self._ended = now
            self._answered = step, self._ask(step)
        return self._answered[1]

    def _ask(self, step: int) -> bool:
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            # Not `step`: where a process trains several runs, a point after the end of one lies in the next.
            Interrupts._asked += 1
            is_reached = multihost_utils.reached_preemption_sync_point(Interrupts._asked)
            if is_reached and _deadline is not None:
                _deadline.start(signal.SIGTERM)  # which JAX has taken
            return is_reached
        return self._received

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Asks the loop to stop: the handler of its signals."""
        _note(number)
        is_first, self._received = not self._received, True
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)
        if threading.current_thread() is threading.main_thread():
            # The system's default action works even while Python waits for a compilation; a notebook's kernel must
            # survive.
            is_notebook = "ipykernel" in sys.modules
            signal.signal(signal.SIGINT, signal.default_int_handler if is_notebook else signal.SIG_DFL)
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone, which is why the signal came
            if not is_first:
                return
            cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
            os.write(2, f"{cursor}\nstopping: saves a checkpoint first; Ctrl-C again quits at once\n".encode())

    def progress(self) -> tuple[Any, ...]:
        """Changes while the loop, or the writing of a checkpoint, makes progress."""
        return self._answered, self.doing, [_written(folder) for folder in self._folders]

    def patience(self) -> float:
        """The seconds without progress after which the loop is stuck."""
        return max(STUCK_SECONDS, STUCK_STEPS * self._longest)

    def remaining(self) -> str:
        """What is left if the process ends now, in words."""
        steps = [_newest(folder) for folder in self._folders]
        if not steps or None in steps:
            return "no checkpoint is complete yet: the same command begins again"
        return f"the newest checkpoint is of step {steps[0]}: the same command goes on from there"


def begin(name: str) -> None:
    """For a command called `name`: from now on the signals, while no loop runs, raise `Interrupted`."""
    global _deadline
    _deadline = Deadline(name, SIGNALS, lambda: _loop, STUCK_SECONDS)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # by nohup, or in the background of a shell
            signal.signal(number, _raise)


def finish() -> None:
    """The command has come to its end: from now on a signal ends the process at once."""
    for number in SIGNALS:
        if signal.getsignal(number) in (_raise, _note_again):
            signal.signal(number, signal.SIG_DFL)


def wait_for_others() -> None:
    """From now on this process may take its time to end: it waits for processes with deadlines of their own."""
    if _deadline is not None:
        signal.set_wakeup_fd(-1)


def lose_output() -> None:
    """The process can't print any more: asks the loop to stop or, outside of one, raises `Interrupted`."""
    if _deadline is not None:
        _deadline.start(OUTPUT_GONE)
    if _loop is not None:
        _loop.receive(OUTPUT_GONE, None)
    elif _first is None and threading.current_thread() is threading.main_thread():
        _raise(OUTPUT_GONE, None)  # else the command is about to end already


def survives_terminal() -> bool:
    """Whether the process was started to outlive its terminal, as by nohup."""
    return signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def code_after_save(code: int) -> int:
    """The exit code of a command that was interrupted and has saved: `code`, if the signal has none of its own."""
    return 128 + _first if _first in OWN_CODES else code


def _raise(number: int, frame: FrameType | None) -> None:
    _note(number)
    for other in SIGNALS:  # the next ones don't disturb the end, but a second Ctrl-C is in a hurry
        if signal.getsignal(other) == _raise:
            signal.signal(other, signal.SIG_DFL if other == signal.SIGINT else _note_again)
    raise Interrupted(number)


def _note(number: int) -> None:
    global _first
    if _first is None:
        _first = signal.Signals(number)


def _note_again(number: int, frame: FrameType | None) -> None:
    """A handler that does nothing."""


def _is_nohup(number: int) -> bool:
    return number == signal.SIGHUP and survives_terminal()


def _newest(folder: RunFolder) -> int | None:
    """The step of the newest checkpoint that is complete."""
    with contextlib.suppress(Exception):  # an object store may be what is stuck
        found = [path for path in folder.file(CHECKPOINTS).iterdir() if path.name.isdigit()]
        steps = [int(p.name) for p in found if not folder.is_remote or (p / "commit_success.txt").exists()]
        return max(steps, default=None)
    return None


def _written(folder: RunFolder) -> tuple[int, int]:
    """The number of files of all checkpoints, and their bytes."""
    sizes: list[int] = []
    with contextlib.suppress(Exception):  # a file that was just renamed, or an object store that is what is stuck
        sizes.extend(_sizes(folder.file(CHECKPOINTS)))
    return len(sizes), sum(sizes)


def _sizes(place: epath.Path) -> Iterator[int]:
    for path in place.iterdir():
        if path.is_dir():
            yield from _sizes(path)
        else:
            yield path.stat().length
