"""What signals do to the launcher, which must not leave a machine running."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a closed terminal, do what Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def ignored_signals(tell: Callable[[], None]) -> Iterator[None]:
    """No signal that can be caught ends what is done here; `tell` answers each."""

    def ignore(number: int, frame: FrameType | None) -> None:
        tell()

    previous = {number: signal.signal(number, ignore) for number in (*SIGNALS, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
