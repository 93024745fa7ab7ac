"""The target `local`: real processes on this machine, watched by the same supervisor as slices of TPUs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from experiments.launch import store
from experiments.launch.clock import Clock
from experiments.launch.description import Launch, Slice
from experiments.launch.outcome import Observation, Record
from gpt_jax.config.errors import UserError
from gpt_jax.config.foreign import read_json_object

SAVING = 300.0  # seconds that a process has to save after SIGTERM


def commands(slice_: Slice, processes: int, port: int | str) -> list[list[str]]:
    """The command of each process. One alone is started as it is; several get the flags of jax.distributed."""
    words = [sys.executable if word == "python" else word for word in slice_.command]
    if processes == 1:
        return [words]
    shared = [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
    return [[*words, *shared, f"--process_id={i}"] for i in range(processes)]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


class LocalMachines:
    """Starts, watches and ends processes; see `supervise.Machines`. Logs and state are in `folder`."""

    margin = 0.0

    def __init__(self, launch: Launch, folder: Path, clock: Clock, saving: float = SAVING) -> None:
        self._launch, self._folder, self._clock, self._saving = launch, folder, clock, saving
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ended: dict[int, float] = {}
        self._looks = 0  # a process that can be looked at is alive, however long ago the last look was

    def start(self, slice_: Slice, attempt: int, seconds: float | None) -> None:
        folder = self._folder / f"attempt-{attempt}"
        folder.mkdir(parents=True, exist_ok=True)
        self._processes, self._ended = [], {}
        for i, command in enumerate(commands(slice_, self._launch.processes, free_port())):
            with (folder / f"worker-{i}.log").open("wb") as log:
                # A session of its own: Ctrl-C is for the launcher, which asks every process to save, once.
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"PYTHONUNBUFFERED": "1"},
                    start_new_session=True,
                )
            self._processes.append(process)

    def look(self, slice_: Slice, attempt: int) -> Observation:
        now, records = self._clock.now(), []
        self._looks += 1
        for i, process in enumerate(self._processes):
            code = process.poll()
            if code is not None:
                self._ended.setdefault(i, now)
                code = 128 - code if code < 0 else code
            records.append(
                Record(i, len(self._processes), self._looks, code, self._ended[i] if i in self._ended else None)
            )
        return Observation("running" if records else "absent", records=tuple(records))

    def remove(self, slice_: Slice) -> None:
        """Asks the processes to save and end, and kills those that do not."""
        for process in self._processes:
            _signal(process, signal.SIGTERM)
        limit = self._clock.now() + self._saving
        for process in self._processes:
            try:
                process.wait(max(0.0, limit - self._clock.now()))
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)
                process.wait()
        for process in self._processes:
            _kill_group(process.pid)  # what a process of ours has left behind
        self._processes = []

    def log(self, slice_: Slice, attempt: int, worker: int, start: int) -> str:
        path = self._folder / f"attempt-{attempt}" / f"worker-{worker}.log"
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            file.seek(start)
            return file.read().decode(errors="surrogateescape")

    def read_state(self, slice_: Slice) -> dict[str, Any] | None:
        path = self._folder / store.STATE
        return store.checked_state(read_json_object(path), path, store.LOCAL) if path.exists() else None

    def write_state(self, slice_: Slice, state: dict[str, Any]) -> None:
        store.write(self._folder / store.STATE, state | {"launcher": os.getpid()})


@contextmanager
def only_one(folder: Path, name: str) -> Iterator[None]:
    """Keeps a second launch of the name out.

    Raises:
      UserError: one is running.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"{name} is already launched: watch it with logs -f, end it with stop, or choose another --name"
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_running(folder: Path) -> bool:
    """Whether a launcher holds the folder."""
    lock = filelock.FileLock(folder / ".lock")
    try:
        with lock.acquire(timeout=0):
            return False
    except filelock.Timeout:
        return True


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is None:
        process.send_signal(number)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
