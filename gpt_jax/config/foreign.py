"""Reads files that others wrote, which may be damaged or hostile.

Nothing here waits for a pipe, reads a device, or takes more memory than a stated size allows.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_jax.config.errors import ConfigError, MissingFile, UserError
from gpt_jax.config.printable import printable

MOST_BYTES = 256 << 20  # of a file that is read whole: the largest tokenizers in use have 40 MB

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

PathLike = str | os.PathLike[str]


def open_regular(path: PathLike) -> int:
    """A file descriptor to read a regular file with; links are followed.

    Raises:
      MissingFile: there is no such file.
      UserError: it is a folder, a pipe or a device, or may not be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer would wait for ever
    except FileNotFoundError:
        raise MissingFile(f"there is no file {path}: check the path") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', error)}): check the path") from None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise UserError(f"{path} is not a file but a folder, a pipe or a device: give the path of a file")


def read_bytes(path: PathLike, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
      MissingFile, UserError: as `open_regular`; or the file is larger.
    """
    with open(open_regular(path), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path} has more than {most:,} bytes, too many for a file of its kind: check the path")
    return content


def read_text(path: PathLike, most: int = MOST_BYTES) -> str:
    """The content of a UTF-8 file. Raises as `read_bytes`, and UserError if it is not UTF-8."""
    return decoded(read_bytes(path, most), path)


def read_json(path: PathLike, most: int = MOST_BYTES) -> Any:
    """The value in a JSON file. Raises as `read_text`, and UserError as `parse_json`."""
    return parse_json(read_text(path, most), path)


def read_json_object(path: PathLike, most: int = MOST_BYTES) -> dict[str, Any]:
    """The object in a JSON file. Raises as `read_json`, and UserError if the value is no object."""
    value = read_json(path, most)
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {kind_of(value)}: restore the file")
    return value


def decoded(content: bytes, source: PathLike) -> str:
    """The text of UTF-8 bytes from `source`. Raises UserError if they are not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 text (byte {error.start}): restore the file") from None


def parse_json(text: str, source: PathLike) -> Any:
    """The value of a JSON text from `source`.

    Raises:
      UserError: it is not JSON, nests too deep, has a number too long to read, half of a character, or an object has
        a key twice.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise UserError(f"{source} has half of a character (a lone surrogate): restore the file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{source} is not JSON ({error}): restore the file") from None
    except RecursionError:
        raise UserError(f"{source} is not read: its JSON nests too deep; restore the file") from None
    except ValueError as error:
        raise UserError(f"{source} is not read: {error}; restore the file") from None


@contextmanager
def well_formed(source: PathLike) -> Iterator[None]:
    """Reports what the body raises when values from a file are of the wrong kind: lists where groups are due, nulls,
    texts for numbers.

    Raises:
      ConfigError: `source` is damaged.
    """
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        reason = printable(" ".join(str(error).split())[:200])
        raise ConfigError(f"{source} is damaged ({type(error).__name__}: {reason}): restore it") from None


def kind_of(value: Any) -> str:
    """What a JSON value is called in a message."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names[type(value)]


def shown(value: Any) -> str:
    """A value of a foreign file for a message: short, and without control characters."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 120, 120
    return short.repr(value)


def quoted(name: Any) -> str:
    """A name of a foreign file in double quotes, as `shown`."""
    return f'"{shown(str(name))[1:-1]}"'


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return found


def inside(folder: PathLike, name: str) -> Path:
    """The path of the file `name` of `folder`, as a file inside the folder refers to it.

    Raises:
      UserError: the name is absolute or leads out of the folder. Links in the folder may point anywhere: the caches of
        model hubs consist of them.
    """
    parts = Path(name).parts
    if not parts or "\0" in name or Path(name).is_absolute() or ".." in parts:
        raise UserError(f"{folder} refers to the file {name!r} outside of it: restore the folder")
    return Path(folder, name)
