"""Text files: finding them by path or glob, decoding them, and dividing them into documents."""

import glob
import itertools
import os
import sysconfig
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from etils import epath

from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.config.foreign import open_regular

# Packages that pip installs beside the standard library, and its tests, which are large and consist mostly of data.
SKIPPED_FOLDERS = frozenset({"__pycache__", "idle_test", "site-packages", "dist-packages", "test", "tests"})


class Document(NamedTuple):
    """A text and its name, which decides its place in the order and whether it is held out."""

    name: str
    text: str


class SourceFile(NamedTuple):
    """A file.

    `name` is relative to the folder searched, with "/" on every system. `size` (bytes) and `modified` (ns, or s in a
    bucket) show whether the file has changed.
    """

    name: str
    path: epath.Path
    size: int
    modified: int


def find_files(path: str) -> list[SourceFile]:
    """Returns the file at `path`, every file below that folder, or every file that matches that glob, sorted by name.

    Folders and globs skip hidden files, pipes and devices; `**` in a glob matches across folders. In a bucket
    (`gs://`), folders are not searched recursively.

    Raises:
      MissingFile: there is no such file.
      UserError: `path` is a pipe or a device, or no path at all.
    """
    path = os.path.expanduser(path)
    if "\0" in path or not _is_text(path):
        raise UserError(f"data.path={path!r} is not a path: give a file, a folder with files, or a glob")
    if "://" not in path and os.path.exists(path) and not os.path.isdir(path):
        os.close(open_regular(path))
    root, pattern = _root_and_pattern(path)
    if "://" in path:
        found = [file for file in epath.Path(root).glob(pattern) if not file.name.startswith(".")]
    else:
        found = [epath.Path(root, name) for name in glob.glob(pattern, root_dir=root, recursive=True)]
    files = sorted({_source_file(file, root) for file in found if _is_regular(file)})
    if not files:
        raise MissingFile(
            f"there is no text at data.path={path}: give a file, a folder with files, or a glob that matches some"
        )
    return files


def _is_regular(file: epath.Path) -> bool:
    return file.is_file() if "://" in str(file) else os.path.isfile(file)  # epath calls pipes and devices files


def _is_text(path: str) -> bool:
    try:
        return bool(path.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return False


def _root_and_pattern(path: str) -> tuple[str, str]:
    """Splits `path` into the folder that names are relative to and a glob of the files in it."""
    whole = epath.Path(path)
    is_remote = "://" in path
    if whole.is_dir() if is_remote else os.path.isdir(path):
        return path, "*" if is_remote else "**"
    if (whole.exists() if is_remote else os.path.exists(path)) or not glob.has_magic(path):
        return str(whole.parent), glob.escape(whole.name)
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.split("/"))
    root = "/".join(fixed)
    return root or ("/" if path.startswith("/") else "."), path[len(root) :].lstrip("/")


def python_files() -> list[SourceFile]:
    """Returns the `*.py` files of the standard library, sorted by name.

    Raises:
      MissingFile: this Python comes without source files.
    """
    root = sysconfig.get_paths()["stdlib"]
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        files += [_source_file(epath.Path(folder, name), root) for name in names if name.endswith(".py")]
    if not files:
        raise MissingFile(f"this Python has no source files at {root}: name another corpus, or give data.path=FILE")
    return sorted(files)


def read_documents(files: Iterable[SourceFile], separator: str | None, skip_undecodable: bool) -> Iterator[Document]:
    """Yields the documents of `files` in order.

    Without a `separator` each file is one document; with one, each part between separators is, and the separators
    belong to none. Empty documents are skipped. Files are UTF-8; a byte order mark at the start is dropped, and nothing
    else is changed, neither line endings nor NULs.

    Raises:
      UserError: a file is not UTF-8 and `skip_undecodable` is False; or it has changed since it was found.
    """
    for file in files:
        try:
            text = _content(file).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            if skip_undecodable:
                continue
            raise UserError(
                f"{file.path} is not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}): "
                "convert it, for example with iconv, or leave it out of data.path"
            ) from None
        parts = [text] if separator is None else text.split(separator)
        for number, part in enumerate(parts):
            if part:
                yield Document(file.name if separator is None else f"{file.name}#{number}", part)


def _content(file: SourceFile) -> bytes:
    if "://" in str(file.path):
        return file.path.read_bytes()
    with open(open_regular(file.path), "rb") as opened:
        content = opened.read(file.size + 1)
    if len(content) != file.size:
        raise UserError(f"{file.path} changes while it is read: wait until it is written, and start again")
    return content


def _source_file(path: epath.Path, root: str) -> SourceFile:
    if "://" in str(path):
        state = path.stat()
        return SourceFile(str(path).removeprefix(root).lstrip("/"), path, state.length, int(state.mtime or 0))
    state = os.stat(path)
    return SourceFile(os.path.relpath(path, root).replace(os.sep, "/"), path, state.st_size, state.st_mtime_ns)
