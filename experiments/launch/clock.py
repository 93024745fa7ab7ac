"""Time as the launcher sees it, so that tests can replace it."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Seconds since some moment, and a way to wait."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """Seconds since 1970 by the machine's clock as it was at the start; from then on by one that never jumps, and that
    goes on while a laptop sleeps.
    """

    def __init__(self) -> None:
        self._began = time.time() - _steady()

    def now(self) -> float:
        return self._began + _steady()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def _steady() -> float:
    # On macOS, the monotonic clock of the system counts sleep, but not Python's own.
    return time.clock_gettime(time.CLOCK_BOOTTIME if hasattr(time, "CLOCK_BOOTTIME") else time.CLOCK_MONOTONIC)


@dataclass(frozen=True)
class Timing:
    """How long the launcher waits, in seconds.

    Attributes:
      poll: between two looks at a slice.
      grace: from the first failure of a worker until the launcher decides without the others.
      silent: without a sign of life, a worker that has not ended is lost.
      starting: a slice that is active but has no worker for so long never starts.
      call: for one call of gcloud; none of ours waits for a machine.
      finish: after Ctrl-C, a call that has begun gets so long to end.
      first_wait, longest_wait: before the first and after many tries; they double in between.
    """

    poll: float = 20.0
    grace: float = 180.0
    silent: float = 600.0
    starting: float = 1800.0
    call: float = 180.0
    finish: float = 30.0
    first_wait: float = 30.0
    longest_wait: float = 900.0

    @classmethod
    def of(cls, target: str) -> Timing:
        """The times for a target: processes on this machine are looked at, and started again, at once."""
        return cls(poll=1.0, first_wait=1.0) if target == "local" else cls()

    def wait(self, failures: int, chance: random.Random) -> float:
        """The wait after so many failures in a row (from 1), spread by half so that slices do not move together."""
        return min(self.first_wait * 2 ** (failures - 1), self.longest_wait) * chance.uniform(0.5, 1.0)
