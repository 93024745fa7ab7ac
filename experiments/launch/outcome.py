"""What to do with a slice, decided from what is seen of it. No function here has a clock or a machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from experiments.launch.clock import Timing
from experiments.launch.description import SAVED

USERS = (1, 2)  # the exit codes of a command that failed for a reason that a new machine does not cure


@dataclass(frozen=True)
class Record:
    """What a worker says of itself. `beat` changes while it lives; `code` and `ended` (its clock, in seconds) are None
    while its command runs.
    """

    worker: int
    hosts: int
    beat: int
    code: int | None
    ended: float | None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        found = cls(values["worker"], values["hosts"], values["beat"], values["code"], values["ended"])
        whole = (found.worker, found.hosts, found.beat)
        if any(type(number) is not int for number in (*whole, 0 if found.code is None else found.code)):
            raise TypeError(f"{found}")
        return found if found.ended is None else replace(found, ended=float(found.ended))


@dataclass(frozen=True)
class Observation:
    """A look at a slice.

    Attributes:
      machine: "waiting" for resources, "running", "lost" (preempted, or about to be), "failed" (could not be made),
        "refused" (can never be made), or "absent".
      reason: the cloud's words for it.
      records: of the workers that have reported.
      silence: worker → seconds for which its beat has not changed.
      since_active, since_failure: seconds since the slice was first seen running, and the first failure of a worker.
    """

    machine: Literal["waiting", "running", "lost", "failed", "refused", "absent"]
    reason: str = ""
    records: tuple[Record, ...] = ()
    silence: Mapping[int, float] | None = None
    since_active: float = 0.0
    since_failure: float = 0.0


@dataclass(frozen=True)
class Decision:
    """`again` starts the command on a new machine; `stop` gives up. `worker` is the one that failed first."""

    kind: Literal["wait", "finished", "again", "stop"]
    reason: str = ""
    worker: int | None = None
    code: int = 0
    is_crash: bool = False


def decide(seen: Observation, timing: Timing) -> Decision:
    """What to do next. A failure that a user must mend is told from one that a new machine cures."""
    ended = [record for record in seen.records if record.code is not None]
    hosts = max((record.hosts for record in seen.records), default=0)
    if hosts and len(ended) == hosts and all(record.code == 0 for record in ended):
        return Decision("finished")
    if any(record.code != 0 for record in ended):
        return _failed(seen, ended, hosts, timing)
    match seen.machine:
        case "lost":
            return Decision("again", f"preempted ({seen.reason})" if seen.reason else "preempted")
        case "failed":
            return Decision("again", f"the slice could not be made: {seen.reason}")
        case "refused":
            return Decision("stop", seen.reason, code=1)
        case "absent":
            return Decision("stop", "it was deleted, by stop or in the console", code=SAVED)
        case "running" if not seen.records and seen.since_active > timing.starting:
            return Decision("again", "no worker has started")
        case "running" if (lost := _silent(seen, timing)) is not None:
            return Decision("again", f"worker {lost} gives no sign of life")
    return Decision("wait")


def _failed(seen: Observation, ended: list[Record], hosts: int, timing: Timing) -> Decision:
    """The decision once a worker has failed: the first failure is the cause, the others follow from it."""
    is_whole = len(ended) == hosts
    if not is_whole and seen.machine == "running" and seen.since_failure < timing.grace:
        return Decision("wait")
    if seen.machine == "lost":
        return Decision("again", "preempted")
    if seen.machine == "running" and (lost := _silent(seen, timing)) is not None:
        return Decision("again", f"worker {lost} is lost, and the others stopped")
    failures = [record for record in ended if record.code != 0]
    first = min(failures, key=lambda record: (math.inf if record.ended is None else record.ended, record.worker))
    assert first.code is not None
    if first.code == SAVED:
        return Decision("again", "it was interrupted and saved", first.worker, first.code)
    if first.code in USERS:
        return Decision("stop", f"the command failed with the exit code {first.code}", first.worker, first.code)
    return Decision("again", f"the command crashed with the exit code {first.code}", first.worker, 1, is_crash=True)


def _silent(seen: Observation, timing: Timing) -> int | None:
    """A worker that has not ended and has not been heard of for too long."""
    limit = timing.grace / 2 if seen.since_failure else timing.silent
    alive = {record.worker for record in seen.records if record.code is None}
    late = [worker for worker, seconds in (seen.silence or {}).items() if worker in alive and seconds >= limit]
    return min(late, default=None)
