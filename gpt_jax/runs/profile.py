"""The profiler's trace of a few steps."""

from __future__ import annotations

import jax

PROFILED = range(3, 8)  # steps of this process, from 1: compilation is over, and so short a trace is still readable


class Trace:
    """Writes a trace of the steps `PROFILED` to the folder `path`; None: no trace."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._step = 0
        self._is_running = False

    def before_step(self) -> None:
        """To be called before each step of this process."""
        self._step += 1
        if self._path is not None and self._step == PROFILED.start:
            jax.profiler.start_trace(self._path)
            self._is_running = True
        if self._step == PROFILED.stop:
            self.end()

    def end(self) -> None:
        if self._is_running:
            jax.profiler.stop_trace()
            self._is_running = False
