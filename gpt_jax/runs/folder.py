"""The run folder: its file names, atomic writes by process 0, and a lock against a second writer.

The folder is on a local disk or in an object store (`gs://`); `etils.epath` reads and writes both. An object store can
neither append nor lock. There, a file that grows is uploaded again from time to time, and the lock is a lease that its
holder renews.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import filelock
import jax
from etils import epath

from gpt_jax.config.errors import UserError
from gpt_jax.runs import consensus

# What a run folder holds.
CONFIG = "config.json"  # the configuration as given and as resolved
ENVIRONMENT = "environment.json"  # id, hashes of the data, and for each start its versions and devices
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
LOSS_PLOT = "loss.png"
CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"  # checkpoints whose content is not what was saved
SAVED = "saved.json"  # there since the first checkpoint was complete
ASIDE = "aside"  # earlier runs of the folder, each in a folder of its own
TOKENIZER = "tokenizer"
TENSORBOARD = "tensorboard"
PROFILE = "profile"
LOCK, LEASE = ".lock", "lease.json"  # on a disk; in an object store
SHARED = ".shared"  # there while the processes of a run look whether all of them see the folder

Workdir = str | os.PathLike[str]

LEASE_SECONDS = 120.0  # a lease that has not been renewed for so long belongs to a dead run
ASK_SECONDS = 2.0
REMOTE_REWRITE_SECONDS = 30.0
VISIBLE_SECONDS = 20.0  # until a file of another host shows in a network file system


class RunLocked(UserError):
    """Another process is writing to this run folder."""


class RunFolder:
    """A run folder. All processes may read; methods that write do nothing on any process but process 0."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = epath.Path(path).expanduser()
        self.is_remote = "://" in os.fspath(self.path)
        if not self.is_remote:
            self.path = self.path.absolute()
        self._growing: dict[str, str] = {}
        self._rewritten: dict[str, float] = {}

    def __str__(self) -> str:
        return os.fspath(self.path)

    @property
    def writes(self) -> bool:
        """Whether this process writes."""
        return jax.process_index() == 0

    def file(self, name: str) -> epath.Path:
        """The path of a file of this folder."""
        return self.path / name

    def exists(self, name: str = "") -> bool:
        """Whether the file, or without a name the folder, exists."""
        return self.file(name).exists()

    def make(self, name: str = "") -> epath.Path:
        """Makes the folder, or a folder inside it, and returns its path.

        Raises:
          UserError: the folder cannot be made.
        """
        folder = self.file(name)
        if self.writes:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"the folder {folder} cannot be made ({error.strerror}): choose another --workdir"
                ) from None
        return folder

    def read_text(self, name: str) -> str:
        return self.file(name).read_text()

    def read_json(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
          UserError: the file is not JSON.
        """
        try:
            return json.loads(self.read_text(name))
        except json.JSONDecodeError as error:
            raise UserError(f"{self.file(name)} is not JSON ({error}): restore it, or use another folder") from None

    def write_bytes(self, name: str, content: bytes) -> None:
        """Replaces a file atomically: readers, also after a crash, see either the old content or the new."""
        if not self.writes:
            return
        target = self.file(name)
        if self.is_remote:
            target.write_bytes(content)  # an object appears when its upload is complete
            return
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)

    def write_text(self, name: str, content: str) -> None:
        self.write_bytes(name, content.encode())

    def write_json(self, name: str, content: Any) -> None:
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def append(self, name: str, content: str, force: bool = True) -> None:
        """Appends to a text file. In an object store the upload may wait for half a minute, unless `force`."""
        if not self.writes:
            return
        if not self.is_remote:
            if content:
                with self.file(name).open("a") as file:
                    file.write(content)
            return
        if name not in self._growing:
            self._growing[name] = self.read_text(name) if self.exists(name) else ""
            self._rewritten[name] = 0.0
        self._growing[name] += content
        if force or time.monotonic() - self._rewritten[name] >= REMOTE_REWRITE_SECONDS:
            self.write_text(name, self._growing[name])
            self._rewritten[name] = time.monotonic()

    def truncate(self, name: str, content: str) -> None:
        """Replaces the content of a file that `append` writes to."""
        self._growing.pop(name, None)
        self.write_text(name, content)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other writers out of the folder.

        Raises:
          RunLocked: another run is writing to it.
          UserError: the folder cannot be written to.
        """
        if not self.writes:
            yield
            return
        self.make()
        with _Lease(self.file(LEASE)) if self.is_remote else self._file_lock():
            yield

    def check_shared(self) -> None:
        """Checks that all processes see the same folder, once process 0 holds its lock.

        Raises:
          UserError: on every process, if one of them does not.
        """
        if jax.process_count() == 1:
            return
        mark = consensus.first_says(uuid.uuid4().hex)
        self.write_text(SHARED, mark)
        consensus.meet("folder marked")
        end = time.monotonic() + VISIBLE_SECONDS
        while not (sees := self._has(SHARED, mark)) and time.monotonic() < end:
            time.sleep(0.2)
        if (blind := consensus.first_failed(not sees)) is not None:
            raise UserError(
                f"process {blind} does not see what process 0 writes to --workdir: choose a folder that all hosts"
                " share, on a network file system or gs://…"
            )
        if self.writes:
            self.file(SHARED).unlink()

    def _has(self, name: str, content: str) -> bool:
        try:
            return self.read_text(name) == content
        except FileNotFoundError:
            return False

    @contextmanager
    def _file_lock(self) -> Iterator[None]:
        lock = filelock.FileLock(self.file(LOCK))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunLocked(_locked(self.path)) from None
        except OSError as error:
            raise UserError(
                f"the folder {self.path} cannot be written to ({error.strerror}): choose another --workdir"
            ) from None
        try:
            yield
        finally:
            lock.release()


class _Lease:
    """A lock for an object store: a small object that its holder renews, and that anyone may take over once it is
    stale.
    """

    def __init__(self, path: epath.Path) -> None:
        self.path = path
        self.id = uuid.uuid4().hex
        self._released = threading.Event()

    def __enter__(self) -> None:
        self._wait_for_holder()
        self._write()
        time.sleep(0.5)  # of two processes that wrote a lease at once, both now read the later one
        holder = self._read()
        if holder is None or holder["id"] != self.id:
            raise RunLocked(_locked(self.path.parent))
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")
        self._thread.start()

    def _wait_for_holder(self) -> None:
        """Returns when there is no holder, or when it has died, since it has not renewed its lease in time.

        Raises:
          RunLocked: the holder renews its lease.
        """
        first = holder = self._read()
        if first is not None and time.time() - first["renewed"] < LEASE_SECONDS:
            warnings.warn(
                f"waits up to {LEASE_SECONDS:.0f} seconds to see whether the last run in {self.path.parent} is alive",
                stacklevel=2,
            )
        while holder is not None and time.time() - holder["renewed"] < LEASE_SECONDS:
            if holder != first:
                raise RunLocked(_locked(self.path.parent))
            time.sleep(ASK_SECONDS)
            holder = self._read()

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._thread.join()
        holder = self._read()
        if holder is not None and holder["id"] == self.id:
            self.path.unlink()

    def _renew(self) -> None:
        while not self._released.wait(LEASE_SECONDS / 4):
            self._write()

    def _write(self) -> None:
        lease = {"id": self.id, "renewed": time.time(), "host": socket.gethostname(), "process": os.getpid()}
        self.path.write_text(json.dumps(lease))

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None


def _locked(path: epath.Path) -> str:
    return f"another run is writing to {path}: wait for it to end, stop it, or choose another --workdir"
