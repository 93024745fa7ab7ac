"""Folders that are built once and are either complete or absent, even if building is interrupted.

The manifest of a folder has the size and the SHA-256 of each of its files, and a hash of itself. They are checked
whenever the folder is opened: files of up to ALWAYS bytes together by their content, at 1.7 GB/s on a core that
computes SHA-256 in hardware. Larger folders are hashed when they are built and whenever a file has another size, inode
or time of change than at the last full check; while all are the same, opening costs one `stat` per file. What changes
on a disk without the file system's knowledge is then found by `check` only.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from gpt_jax.config.disk import writing
from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.config.foreign import open_regular, read_json_object

MANIFEST, CHECKED = "manifest.json", "checked.json"
ALWAYS = 64 << 20


class Damaged(UserError):
    """A cached folder is not as it was written."""


class _Content(NamedTuple):
    manifest: dict[str, Any]
    files: dict[str, list[Any]]  # name → size in bytes, SHA-256


def cache_folder(folder: str | os.PathLike[str] | None) -> Path:
    """Returns `folder` or, if it is None, `$GPT_JAX_CACHE`, `$XDG_CACHE_HOME/gpt_jax` or `~/.cache/gpt_jax`."""
    if folder is None:
        folder = os.environ.get("GPT_JAX_CACHE")
    if folder is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt_jax"
    return Path(folder).expanduser().absolute()


def build_once(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Returns the manifest of `folder`, building the folder first if necessary.

    `build` receives an empty temporary folder, fills it and returns its manifest, a JSON object. The result is flushed
    to disk and renamed to `folder` in one step. A lock lets one process build at a time. A damaged folder is built
    again, with a warning.
    """
    with contextlib.suppress(MissingFile, Damaged):
        return _opened(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache {folder.parent} cannot be made ({error.strerror}): name another folder in GPT_JAX_CACHE"
        ) from None
    with _lock(folder):
        try:
            return _opened(folder)
        except Damaged as damage:
            warnings.warn(f"{damage}: it is built again", stacklevel=2)
        except MissingFile:
            pass
        partial = folder.with_name(folder.name + ".partial")
        for leftover in (partial, folder):
            _remove(leftover)
        partial.mkdir()
        try:
            with writing(folder):
                manifest = build(partial)
                files = {name: [(partial / name).stat().st_size, _digest(partial / name)] for name in _names(partial)}
                whole = {"manifest": manifest, "files": files}
                (partial / MANIFEST).write_text(json.dumps({**whole, "hash": _hash(whole)}), encoding="utf-8")
                _note(partial, _Content(manifest, files))
                for path in (*partial.rglob("*"), partial):
                    _flush(path)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk has better uses
            raise
        partial.rename(folder)
        _flush(folder.parent)
        return manifest


def check(folder: Path) -> int:
    """Compares the content of every file of a cached folder with its hash. Returns the number of bytes read.

    Raises:
      MissingFile: there is no such folder.
      Damaged: a file is missing or not as it was written.
    """
    content = _content(folder)
    _check_files(folder, content)
    return sum(size for size, _ in content.files.values())


def _opened(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose files are as they were written. Raises as `check`."""
    content = _content(folder)
    size = sum(size for size, _ in content.files.values())
    if size <= ALWAYS or _noted(folder) != _states(folder, content):
        _check_files(folder, content)
        if size > ALWAYS:
            with contextlib.suppress(OSError):  # in a cache that this user may only read, each opening checks again
                _note(folder, content)
    return content.manifest


def _content(folder: Path) -> _Content:
    if not os.path.lexists(folder):
        raise MissingFile(f"there is no folder {folder}")
    try:
        values = read_json_object(folder / MANIFEST)
        claimed = values.pop("hash", None)
        if claimed == _hash(values):
            return _Content(values["manifest"], values["files"])
    except UserError:
        pass
    raise Damaged(f"the cache {folder} is damaged (its {MANIFEST} is not as it was written)")


def _check_files(folder: Path, content: _Content) -> None:
    for name, (size, digest) in content.files.items():
        try:
            is_same = os.stat(folder / name).st_size == size and _digest(folder / name) == digest
        except (OSError, UserError):
            is_same = False
        if not is_same:
            raise Damaged(f"the cache {folder} is damaged ({name} is not as it was written)")


def _digest(file: Path) -> str:
    with open(open_regular(file), "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _states(folder: Path, content: _Content) -> dict[str, Any] | None:
    """What the file system says of each file: it changes with every write, and with every copy."""
    try:
        states = {name: os.stat(folder / name) for name in content.files}
    except OSError:
        return None
    return {name: [state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns] for name, state in states.items()}


def _noted(folder: Path) -> dict[str, Any]:
    """The states of the files at the last full check; empty if there is no valid note."""
    try:
        return read_json_object(folder / CHECKED)
    except UserError:
        return {}


def _note(folder: Path, content: _Content) -> None:
    partial = folder / f".{CHECKED}.{uuid.uuid4().hex}"
    partial.write_text(json.dumps(_states(folder, content)), encoding="utf-8")
    partial.replace(folder / CHECKED)


def _names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    lock = filelock.FileLock(folder.with_name(folder.name + ".lock"))
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        logging.getLogger(__name__).warning("waiting for another process that is preparing %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
