"""A lock for an object store, which has none: a small object that its holder renews.

No clock of one host is compared with that of another. Who waits for a lease watches whether it changes, by its own
clock: one that does not change for `LEASE_SECONDS` belongs to a dead run and is taken over. The holder gives up
earlier, `LIFE_SECONDS` after it last renewed its lease, so the two never write at once. A holder that was suspended
beyond this, or finds another's lease, has lost the folder and must not write to it again.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
import warnings
from pathlib import PurePath
from typing import Protocol, runtime_checkable

from gpt_jax.config.errors import UserError

LEASE_SECONDS = 120.0  # a lease that has not changed for so long belongs to a dead run
LIFE_SHARE = 0.75  # of those seconds: how long a holder may write after it last renewed its lease
RENEWALS = 4  # in those seconds
RETRIES = 40  # in those seconds, while a renewal fails
ASK_SECONDS = 2.0
SETTLE_SECONDS = 0.5  # of two processes that wrote a lease at once, both then read the later one


class RunLocked(UserError):
    """Another process is writing to this run folder."""


class LeaseLost(RunLocked):
    """This process no longer holds the folder, and must write nothing more to it."""


def now() -> float:
    """Seconds by a clock that never jumps, and that counts while the machine is suspended too."""
    # On macOS, the monotonic clock of the system counts sleep, but not Python's own.
    return time.clock_gettime(time.CLOCK_BOOTTIME if hasattr(time, "CLOCK_BOOTTIME") else time.CLOCK_MONOTONIC)


@runtime_checkable
class Object(Protocol):
    """The path of an object in the store."""

    @property
    def parent(self) -> PurePath: ...

    def read_bytes(self) -> bytes: ...

    def write_text(self, data: str, /) -> int: ...

    def unlink(self) -> None: ...


class Lease:
    """The lease at `path`, held while it is open as a context manager.

    Raises:
      RunLocked: on entry, if its holder renews it.
    """

    def __init__(self, path: Object) -> None:
        self.path = path
        self.id = uuid.uuid4().hex
        self._renewals = 0
        self._renewed = now()
        self._loss: str | None = None
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        self._wait_for_holder()
        self._write()
        time.sleep(SETTLE_SECONDS)
        if _id(self._read()) != self.id:
            raise RunLocked(locked(self.path.parent))
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        if self._thread is not None:
            self._thread.join(LEASE_SECONDS)  # a request that hangs
        if self._loss is None and _id(self._read()) == self.id:
            self.path.unlink()

    def check(self, asks: bool = True) -> None:
        """Checks that this process still holds the folder, by its clock and, if `asks`, by the lease in the store.

        Raises:
          LeaseLost: it does not. From then on, every call raises.
        """
        self._check_life()
        while self._loss is None and asks:
            try:
                self._check_holder()
                break
            except Exception:  # the store's clients raise many types while it cannot be reached
                time.sleep(LEASE_SECONDS / RETRIES)
                self._check_life()
        if self._loss is not None:
            raise LeaseLost(self._loss)

    def renew(self) -> bool:
        """Renews the lease unless it is lost. Returns whether the store could be reached, or need not be again."""
        self._check_life()
        try:
            if self._loss is None:
                self._check_holder()
            if self._loss is None:
                self._write()
        except Exception:  # tried again
            return False
        return True

    def _wait_for_holder(self) -> None:
        """Returns when there is no holder, or when it has not changed its lease for `LEASE_SECONDS`.

        Raises:
          RunLocked: the holder renews its lease.
        """
        since, first = now(), self._read()
        if first is not None:
            warnings.warn(
                f"waits up to {LEASE_SECONDS:.0f} seconds to see whether the last run in {self.path.parent} is alive",
                stacklevel=3,
            )
        holder = first
        while holder is not None and now() - since < LEASE_SECONDS:
            time.sleep(min(ASK_SECONDS, LEASE_SECONDS / RENEWALS))
            holder = self._read()
            if holder is not None and holder != first:
                raise RunLocked(locked(self.path.parent))

    def _keep(self) -> None:
        pause = LEASE_SECONDS / RENEWALS
        while self._loss is None and not self._released.wait(pause):
            pause = LEASE_SECONDS / (RENEWALS if self.renew() else RETRIES)

    def _check_life(self) -> None:
        if self._loss is None and now() - self._renewed >= LEASE_SECONDS * LIFE_SHARE:
            self._loss = (
                f"the lease on {self.path.parent} could not be renewed for {LEASE_SECONDS * LIFE_SHARE:.0f} seconds, so"
                " another run may write there and this one stops: start it again, and it goes on from its newest"
                " checkpoint"
            )

    def _check_holder(self) -> None:
        if _id(self._read()) != self.id:
            self._loss = (
                f"another run has taken over {self.path.parent}, so this one stops and writes nothing more: let the"
                " other go on, or stop it and start this one again"
            )

    def _write(self) -> None:
        # The count makes each renewal another text, whatever the clock of the host says.
        begun, self._renewals = now(), self._renewals + 1
        lease = {"id": self.id, "renewals": self._renewals, "host": socket.gethostname(), "process": os.getpid()}
        self.path.write_text(json.dumps(lease))
        self._renewed = begun

    def _read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None


def _id(lease: bytes | None) -> str | None:
    """The holder's id; None without a lease, and for content that no run wrote."""
    try:
        content = json.loads(lease or b"null")
    except (ValueError, RecursionError):
        return None
    return content["id"] if isinstance(content, dict) and "id" in content else None


def locked(path: PurePath) -> str:
    return f"another run is writing to {path}: wait for it to end, stop it, or choose another --workdir"
