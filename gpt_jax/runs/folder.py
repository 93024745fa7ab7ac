"""The run folder: its file names, atomic writes by process 0, and a lock against a second writer.

The folder is on a local disk or in an object store (`gs://`); `etils.epath` reads and writes both. An object store can
neither append nor lock. There, a file that grows is uploaded again from time to time, and the lock is a lease that its
holder renews.
"""

from __future__ import annotations

import io
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import filelock
import jax
from etils import epath

from gpt_jax.config import foreign
from gpt_jax.config.disk import writing
from gpt_jax.config.errors import UserError
from gpt_jax.config.foreign import decoded, parse_json
from gpt_jax.runs import consensus
from gpt_jax.runs.lease import Lease, RunLocked, locked

# What a run folder holds.
CONFIG = "config.json"  # the configuration as given and as resolved
ENVIRONMENT = "environment.json"  # id, hashes of the data, and for each start its versions and devices
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
LOSS_PLOT = "loss.png"
CHECKPOINTS = "checkpoints"
LEFT_OUT = "left_out.json"  # the batches that rewinding after spikes left out
HANGS = "hangs"  # stacks of all threads, one file for each hang and process
DAMAGED = "damaged"  # checkpoints whose content is not what was saved
SAVED = "saved.json"  # there since the first checkpoint was complete
ASIDE = "aside"  # earlier runs of the folder, each in a folder of its own
TOKENIZER = "tokenizer"
TENSORBOARD = "tensorboard"
PROFILE = "profile"
LOCK, LEASE = ".lock", "lease.json"  # on a disk; in an object store
SHARED = ".shared"  # there while the processes of a run look whether all of them see the folder

Workdir = str | os.PathLike[str]

REMOTE_REWRITE_SECONDS = 30.0
MOST_BYTES = 4 << 30  # of a file of ours: the metrics of 10 million steps have half of that
VISIBLE_SECONDS = 20.0  # until a file of another host shows in a network file system


class FolderGone(UserError):
    """The run folder was deleted or moved while this process wrote to it."""


class RunFolder:
    """A run folder. All processes may read; methods that write do nothing on any process but process 0."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = epath.Path(path).expanduser()
        self.is_remote = "://" in os.fspath(self.path)
        if not self.is_remote:
            self.path = self.path.absolute()
        self._growing: dict[str, str] = {}
        self._rewritten: dict[str, float] = {}
        self._appended: set[str] = set()
        self._lease: Lease | None = None

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
        """The content of a UTF-8 file.

        Raises:
          MissingFile: there is no such file.
          UserError: it is not a file, not UTF-8, or has more than MOST_BYTES.
        """
        file = self.file(name)
        return decoded(file.read_bytes(), file) if self.is_remote else foreign.read_text(file, MOST_BYTES)

    def read_json(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
          MissingFile, UserError: as `read_text`, and UserError if it is not JSON.
        """
        return parse_json(self.read_text(name), self.file(name))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Replaces a file atomically: readers, also after a crash, see either the old content or the new."""
        if not self.writes:
            return
        target = self.file(name)
        if self.is_remote:
            if self._lease is not None:
                self._lease.check()
            target.write_bytes(content)  # an object appears when its upload is complete
            return
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        with self._writing(target):
            try:
                with partial.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(target)
            except OSError:
                with suppress(OSError):
                    partial.unlink()
                raise

    def write_text(self, name: str, content: str) -> None:
        self.write_bytes(name, content.encode())

    def write_json(self, name: str, content: Any) -> None:
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def append(self, name: str, content: str, force: bool = True) -> None:
        """Appends to a text file. Unless `force`, the upload to an object store may wait for half a minute, and a crash
        of the machine may lose what is appended.

        Raises:
          LeaseLost: another run has taken over the folder.
          FolderGone: the folder, or the file after an earlier call, is not there any more.
        """
        if not self.writes:
            return
        if not self.is_remote:
            if name in self._appended and not self.exists(name):
                # Not made again: Orbax makes the folder again, and the run would go on in half a folder.
                raise FolderGone(_gone(self.file(name)))
            if content:
                self._append(self.file(name), content.encode(), force)
                self._appended.add(name)
            return
        if self._lease is not None:
            self._lease.check(asks=False)
        if name not in self._growing:
            self._growing[name] = self.read_text(name) if self.exists(name) else ""
            self._rewritten[name] = 0.0
        self._growing[name] += content
        if force or time.monotonic() - self._rewritten[name] >= REMOTE_REWRITE_SECONDS:
            self.write_text(name, self._growing[name])
            self._rewritten[name] = time.monotonic()

    def _append(self, path: epath.Path, content: bytes, flushes: bool) -> None:
        """Appends to a file on a disk: all of it or, if the disk is full, nothing. `flushes`: it survives a crash of
        the machine.
        """
        with self._writing(path), io.FileIO(os.fspath(path), "ab") as file:
            before = file.tell()
            try:
                while content:
                    content = content[file.write(content) :]
                if flushes:
                    os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(before)
                raise

    @contextmanager
    def _writing(self, path: epath.Path) -> Iterator[None]:
        """Names the file in an error of the disk.

        Raises:
          FolderGone: the folder is not there any more.
        """
        try:
            with writing(path):
                yield
        except FileNotFoundError:
            if self.exists():
                raise
            raise FolderGone(_gone(self)) from None

    def truncate(self, name: str, content: str) -> None:
        """Replaces the content of a file that `append` writes to."""
        self._growing.pop(name, None)
        self.write_text(name, content)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other writers out of the folder. In an object store, a write checks first that this is still so.

        Raises:
          RunLocked: another run is writing to it.
          UserError: the folder cannot be written to.
        """
        if not self.writes:
            yield
            return
        self.make()
        if not self.is_remote:
            with self._file_lock():
                yield
            return
        with Lease(self.file(LEASE)) as self._lease:
            try:
                yield
            finally:
                self._lease = None

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
            raise RunLocked(locked(self.path)) from None
        except OSError as error:
            raise UserError(
                f"the folder {self.path} cannot be written to ({error.strerror}): choose another --workdir"
            ) from None
        try:
            yield
        finally:
            lock.release()


def _gone(path: object) -> str:
    return f"{path} was deleted or moved while this process wrote to it: bring it back, or start again"
