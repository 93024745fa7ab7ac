"""Standard output and error that may vanish: a closed terminal, `train | head`, a full disk behind `> log`."""

from __future__ import annotations

import atexit
import errno
import io
import os
import sys
from typing import Any

from gpt_jax.runs import interrupt

_has_ended = False


class _Output(io.FileIO):
    """A file descriptor. When it cannot be written to, it is led nowhere, and the run is asked to save and stop."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for C++ libraries too
            os.close(nowhere)
            outlives = error.errno == errno.EIO and interrupt.survives_terminal()  # nohup has kept it from SIGHUP
            if not _has_ended and not outlives:
                interrupt.lose_output()
            return len(data)


def guard() -> None:
    """From now on, an output that vanishes raises nothing where something is printed; see `interrupt.lose_output`."""
    atexit.register(end)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        try:
            is_plain = stream is not None and stream.fileno() == number and isinstance(stream, io.TextIOWrapper)
        except (OSError, ValueError):  # replaced by something that is no file
            continue
        if is_plain:
            stream.flush()
            raw = io.BufferedWriter(_Output(number, "wb", closefd=False))
            guarded = io.TextIOWrapper(
                raw, stream.encoding, stream.errors, line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )  # fmt: skip
            setattr(sys, name, guarded)


def flush() -> None:
    """Writes what is buffered. Raises as `interrupt.lose_output` if that is impossible."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def end() -> None:
    """The command is over: nobody is told any more that the output has vanished."""
    global _has_ended
    _has_ended = True
