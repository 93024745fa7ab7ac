"""SIGINT and SIGTERM ask a run to save and stop. A second Ctrl-C ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import Any

import jax

from gpt_jax.runs import processes

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """A context manager in which the signals only set a flag; the loop reads it after each step.

    Several processes have to stop after the same step, so they agree on it through JAX's coordination service, which
    hears of SIGTERM by itself; Ctrl-C is passed on to it.
    """

    _asked = 0  # how often this process has asked the others: as often as they

    def __init__(self) -> None:
        self._received = False
        self._answered: tuple[int, bool] | None = None
        self._previous: dict[int, Any] = {}
        self._notices = ExitStack()

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            several = jax.process_count() > 1
            heard = (signal.SIGINT,) if several else SIGNALS
            self._previous = {number: signal.signal(number, self._receive) for number in heard}
            if several:
                self._notices.enter_context(processes.preemption_notices())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._notices.close()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Whether to stop after `step` updates. All runs of a group get the same answer for a step."""
        if self._answered is None or self._answered[0] != step:
            self._answered = step, self._ask(step)
        return self._answered[1]

    def _ask(self, step: int) -> bool:
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            # Not `step`: where a process trains several runs, a point after the end of one lies in the next.
            Interrupts._asked += 1
            return multihost_utils.reached_preemption_sync_point(Interrupts._asked)
        return self._received

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)
        # The system's default action works even while Python waits for a compilation; a notebook's kernel must survive.
        signal.signal(signal.SIGINT, signal.default_int_handler if "ipykernel" in sys.modules else signal.SIG_DFL)
        cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
        os.write(2, f"{cursor}\nstopping: saves a checkpoint first; Ctrl-C again quits at once\n".encode())
