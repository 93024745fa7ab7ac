"""A study's log: `log.jsonl` in its folder, to which every start, look and change of the claim adds a line.

Lines are only ever added, by one process at a time. A line that a crash cut short is left out, and the next one begins
on a line of its own.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from gpt_jax.ablation import records
from gpt_jax.ablation.findings import Event
from gpt_jax.config.errors import ConfigError
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.lease import LEASE_SECONDS, RunLocked

LOG = "log.jsonl"
START, LOOK, CHANGE = "start", "look", "change"
WAIT_SECONDS, ASK_SECONDS = LEASE_SECONDS + 30, 0.05  # the lease of a process that died runs out meanwhile


@contextmanager
def alone(folder: RunFolder) -> Iterator[None]:
    """Waits until no other process changes the study's claim and log.

    Raises:
      RunLocked: another process does not let go.
      UserError: the folder cannot be written to.
    """
    until = time.monotonic() + WAIT_SECONDS
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(folder.lock())
                break
            except RunLocked:
                if time.monotonic() > until:
                    raise
                time.sleep(ASK_SECONDS)
        yield


def read_log(folder: RunFolder) -> tuple[Event, ...]:
    """The events in their order.

    Raises:
      ConfigError: a whole line is not an event.
    """
    found = []
    for line in folder.read_text(LOG).split("\n") if folder.exists(LOG) else []:
        try:
            event = json.loads(line)
        except (RecursionError, ValueError):
            if line.strip("\0") == "" or (line.startswith("{") and not line.endswith("}")):  # cut short by a crash
                continue
            raise ConfigError(f"a line of {folder.file(LOG)} is not an event: restore the file") from None
        found.append(records.from_json(Event, event, str(folder.file(LOG))))
    return tuple(found)


def append(folder: RunFolder, events: Sequence[Event]) -> None:
    """Adds events; the caller is `alone`."""
    known = folder.read_text(LOG) if folder.exists(LOG) else ""
    text = "".join(json.dumps(dataclasses.asdict(event), ensure_ascii=False) + "\n" for event in events)
    # A new object: in an object store, one keeps the text that it wrote and would drop what others added.
    RunFolder(folder.path).append(LOG, text if known.endswith("\n") or not known else "\n" + text)


def event(what: str, text: str, runs_done: int) -> Event:
    """An event of this moment."""
    return Event(time=now(), what=what, text=text, runs_done=runs_done)


def now() -> str:
    """The time in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
