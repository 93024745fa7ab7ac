"""Ends a process that a signal has asked to stop, and that does not come to its end.

Python's handlers run in the main thread, which may wait for ever for a batch, a device or a disk. So the system writes
the number of each signal to a pipe, and a thread reads it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Protocol, runtime_checkable

from gpt_jax.runs import processes

LOOKS = 30  # in the time after which a process is stuck


@runtime_checkable
class Stoppable(Protocol):
    """What is to come to its end."""

    doing: str

    def progress(self) -> tuple[Any, ...]: ...

    def patience(self) -> float: ...

    def remaining(self) -> str: ...


class Deadline:
    """Watches, from the first of `numbers` on, whether `current()` makes progress; without it, nothing is saved and
    `seconds` are enough.
    """

    def __init__(
        self, name: str, numbers: Collection[int], current: Callable[[], Stoppable | None], seconds: float
    ) -> None:
        self._name, self._numbers, self._current, self._seconds = name, numbers, current, seconds
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._writes, False)
        signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)
        threading.Thread(target=self._run, name="deadline", daemon=True).start()

    def start(self, number: int) -> None:
        """As if this signal had come."""
        with contextlib.suppress(BlockingIOError):  # so many have come that one more says nothing
            os.write(self._writes, bytes([number]))

    def _run(self) -> None:
        while (number := os.read(self._reads, 1)[0]) not in (*self._numbers, signal.SIGPIPE):
            pass
        since, seen = time.monotonic(), None
        while True:
            loop = self._current()
            patience = self._seconds if loop is None else loop.patience()
            state = None if loop is None else loop.progress()
            if state != seen:
                since, seen = time.monotonic(), state
            if time.monotonic() - since >= patience:
                self._cut(number, loop, patience)
            time.sleep(patience / LOOKS)

    def _cut(self, number: int, loop: Stoppable | None, patience: float) -> None:
        what = "the command has" if loop is None else f"{loop.doing} has"
        left = "" if loop is None else f"; {loop.remaining()}"
        reason = f"stopped by {signal.Signals(number).name}, but {what} not ended for {patience:.0f} seconds{left}"
        processes.quit(128 + number, reason, f"{self._name}: {reason}")
