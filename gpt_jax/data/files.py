"""Text files: which ones a pattern names, what text they hold, where it is divided into documents."""

import glob
import itertools
import os
import sysconfig
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from etils import epath

from gpt_jax.config.errors import MissingFile, UserError

# What pip adds to the standard library, and its tests, which are a good part of it and much of them data.
SKIPPED_FOLDERS = frozenset({"__pycache__", "idle_test", "site-packages", "dist-packages", "test", "tests"})


class Document(NamedTuple):
    """A text and the name that decides its place in the order and its side of the split."""

    name: str
    text: str


class SourceFile(NamedTuple):
    """A file, its name relative to the folder that was asked for ("/" on every system), what shows that it changed."""

    name: str
    path: epath.Path
    size: int
    modified: int


def find_files(path: str) -> list[SourceFile]:
    """The file, every file below the folder, or the files that the glob (`**` crosses folders) names, by name.

    A glob and a folder pass over hidden files. In a bucket (`gs://`), neither crosses folders.

    Raises:
      FileNotFoundError: there is no such file.
    """
    path = os.path.expanduser(path)
    root, pattern = _root_and_pattern(path)
    if "://" in path:
        found = [file for file in epath.Path(root).glob(pattern) if not file.name.startswith(".")]
    else:
        found = [epath.Path(root, name) for name in glob.glob(pattern, root_dir=root, recursive=True)]
    files = sorted({_source_file(file, root) for file in found if file.is_file()})
    if not files:
        raise MissingFile(
            f"There is no text at data.path={path}; give a file, a folder with files, or a glob that matches some."
        )
    return files


def _root_and_pattern(path: str) -> tuple[str, str]:
    """The folder that names are relative to, and the glob of the files in it."""
    whole = epath.Path(path)
    if whole.is_dir():
        return path, "*" if "://" in path else "**"
    if whole.exists() or not glob.has_magic(path):
        return str(whole.parent), glob.escape(whole.name)
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.split("/"))
    root = "/".join(fixed)
    return root or ("/" if path.startswith("/") else "."), path[len(root) :].lstrip("/")


def python_files() -> list[SourceFile]:
    """The standard library's `*.py`, by name."""
    root = sysconfig.get_paths()["stdlib"]
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        files += [_source_file(epath.Path(folder, name), root) for name in names if name.endswith(".py")]
    if not files:
        raise MissingFile(f'This Python keeps no sources at {root}; name another corpus, or give data.path="FILE".')
    return sorted(files)


def read_documents(files: Iterable[SourceFile], separator: str | None, skip_undecodable: bool) -> Iterator[Document]:
    """The documents of the files in order: a file each, or its parts between separators, which belong to none. Empty
    ones are left out.

    A file is UTF-8; a byte order mark at its start is dropped; line ends, NULs and the rest stay as they are.

    Raises:
      ValueError: a file is not UTF-8 (unless such files are to be skipped).
    """
    for file in files:
        try:
            text = file.path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            if skip_undecodable:
                continue
            raise UserError(
                f"{file.path} is not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}); "
                "convert it, for example with iconv, or leave it out of data.path."
            ) from None
        parts = [text] if separator is None else text.split(separator)
        for number, part in enumerate(parts):
            if part:
                yield Document(file.name if separator is None else f"{file.name}#{number}", part)


def _source_file(path: epath.Path, root: str) -> SourceFile:
    if "://" in str(path):
        state = path.stat()
        return SourceFile(str(path).removeprefix(root).lstrip("/"), path, state.length, int(state.mtime or 0))
    state = os.stat(path)
    return SourceFile(os.path.relpath(path, root).replace(os.sep, "/"), path, state.st_size, state.st_mtime_ns)
