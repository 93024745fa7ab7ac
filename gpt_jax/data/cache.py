"""Folders that are built once and are either complete or absent, even if building is interrupted."""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from gpt_jax.config.disk import writing

MANIFEST = "manifest.json"


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
    to disk and renamed to `folder` in one step. A lock lets one process build at a time. The folder is rebuilt if any
    of its files no longer has the size it was written with.
    """
    if (manifest := _manifest(folder)) is not None:
        return manifest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        if (manifest := _manifest(folder)) is not None:
            return manifest
        partial = folder.with_name(folder.name + ".partial")
        for leftover in (partial, folder):
            if leftover.exists():
                shutil.rmtree(leftover)
        partial.mkdir()
        try:
            with writing(folder):
                manifest = build(partial)
                files = [file for file in partial.rglob("*") if file.is_file()]
                sizes = {str(file.relative_to(partial)): file.stat().st_size for file in files}
                (partial / MANIFEST).write_text(json.dumps({"manifest": manifest, "sizes": sizes}), encoding="utf-8")
                for path in (*partial.rglob("*"), partial):
                    _flush(path)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk has better uses
            raise
        partial.rename(folder)
        _flush(folder.parent)
        return manifest


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


def _manifest(folder: Path) -> dict[str, Any] | None:
    """Returns the manifest of a complete folder, else None."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        is_complete = all((folder / name).stat().st_size == size for name, size in content["sizes"].items())
        return content["manifest"] if is_complete else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return None


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
