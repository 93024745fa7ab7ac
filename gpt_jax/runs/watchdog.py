"""A thread that notices a hang: it writes the stacks of all threads, and by choice ends the process."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import statistics
import tempfile
import threading
import time

import jax

from gpt_jax.config import Watchdog
from gpt_jax.runs import processes
from gpt_jax.runs.folder import HANGS, RunFolder
from gpt_jax.runs.goodput import DATA, STEPS, Stopwatch

HUNG = 70  # the exit code of a process that its watchdog ended
MEDIAN_OF = 5  # steps before there is a median; until then, steps have the bound of what is no step
GRACE_SECONDS = 10.0  # from the stacks to the abort, in which the other processes of a run write theirs
WRITE_SECONDS = 30.0  # a hanging file system must not keep the watchdog from aborting
LOOK_SECONDS = 1.0


class HangWatch:
    """A context manager that watches the phases of a stopwatch from a thread of its own.

    A phase is a hang once it lasts longer than its bound: `factor` times the median step for waiting for a step or its
    batch, `pause_seconds` for all else. A hang is told once.
    """

    def __init__(self, config: Watchdog, stopwatch: Stopwatch, folder: RunFolder) -> None:
        self._config, self._stopwatch, self._folder = config, stopwatch, folder
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> HangWatch:
        if self._config.factor is not None:
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def limit(self, phase: str) -> float:
        """The seconds after which a phase is a hang."""
        config, laps = self._config, list(self._stopwatch.laps)
        assert config.factor is not None
        if phase not in (DATA, STEPS) or len(laps) < MEDIAN_OF:
            return config.pause_seconds
        return max(config.floor_seconds, config.factor * statistics.median(laps))

    def _run(self) -> None:
        told, watch = -1, self._stopwatch
        while not self._ended.wait(min(LOOK_SECONDS, self._config.floor_seconds / 4)):
            turn, phase, since = watch.switches, watch.phase, watch.since
            seconds = time.monotonic() - since
            if turn == watch.switches and turn != told and seconds > self.limit(phase):
                told = turn
                self._tell(phase, seconds)
                if self._config.abort and not self._ended.wait(GRACE_SECONDS) and turn == watch.switches:
                    self._abort(phase)

    def _tell(self, phase: str, seconds: float) -> None:
        step, number = self._stopwatch.step, jax.process_index()
        name = f"{HANGS}/step-{step}-process-{number}.txt"
        head = (
            f"watchdog: nothing has ended for {seconds:.0f} seconds (phase {phase}, after step {step}); the stacks of"
            f" all threads follow and are in {self._folder.file(name)}\n"
        )
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file=file, all_threads=True)
            file.seek(0)
            text = head.encode() + file.read()
        with contextlib.suppress(OSError):
            os.write(2, text)
        writer = threading.Thread(target=self._write, args=(name, text), daemon=True, name="watchdog's file")
        writer.start()
        writer.join(WRITE_SECONDS)

    def _write(self, name: str, text: bytes) -> None:
        """Each process writes its own file, so not through the methods of the folder."""
        with contextlib.suppress(OSError):
            file = self._folder.file(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text)

    def _abort(self, phase: str) -> None:
        reason = f"it hung (phase {phase}, after step {self._stopwatch.step}), and its watchdog ended it"
        with contextlib.suppress(OSError):
            os.write(2, f"watchdog: {reason}; the same command goes on from the newest checkpoint\n".encode())
        processes.fail(HUNG, reason)  # one of several: ends them all
        _exit(HUNG)


def _exit(code: int) -> None:
    os._exit(code)  # the main thread hangs, and so would an orderly end
