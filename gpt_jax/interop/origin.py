"""Hashes of the files of a published model: for the record, and against what the Hugging Face Hub says of them.

A file of the Hub has a known hash: in the Hub's cache it is the name of the file, and beside a folder of
`hf download --local-dir` it is in `.cache/huggingface/download`. Large files have a SHA-256, small ones the SHA-1 of a
Git blob.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from gpt_jax.config.errors import UserError
from gpt_jax.config.foreign import decoded, inside, open_regular, read_bytes
from gpt_jax.interop.account import CONFIG
from gpt_jax.interop.weights import INDEX, WEIGHTS, read_index

AT_ONCE = 1 << 20  # bytes to hash at a time
MOST_METADATA = 4096  # bytes of a file in .cache/huggingface/download


def hashes(source: str | Path) -> dict[str, str]:
    """Returns name → SHA-256 of the files with settings and weights of a folder or a GGUF file.

    Reads all bytes, about 1 s a GB.

    Raises:
      MissingFile: a file of the index is missing.
      UserError: a file is not the one that was downloaded from the Hugging Face Hub, or cannot be read.
    """
    return {file.name: _checked(file) for file in _files(Path(source))}


def _files(source: Path) -> Iterator[Path]:
    if not source.is_dir():
        yield source
        return
    yield source / CONFIG
    if os.path.lexists(source / WEIGHTS):
        yield source / WEIGHTS
        return
    yield source / INDEX
    for name in sorted(set(read_index(source / INDEX).values())):
        yield inside(source, name)


def _checked(file: Path) -> str:
    wanted = _expected(file)
    with open(open_regular(file), "rb") as f:
        found = hashlib.sha256()
        blob = hashlib.sha1(b"blob %d\0" % os.fstat(f.fileno()).st_size, usedforsecurity=False)
        while part := f.read(AT_ONCE):
            found.update(part)
            if wanted is not None and len(wanted) == 40:
                blob.update(part)
    if wanted not in (None, found.hexdigest(), blob.hexdigest()):
        raise UserError(f"{file} is not the file that was downloaded (its hash is not {wanted}): download it again")
    return found.hexdigest()


def _expected(file: Path) -> str | None:
    """The hash that a file of the Hub has; None: it is not from there, or was written to later, as `hf` sees it."""
    real = Path(os.path.realpath(file))
    if real.parent.name == "blobs" and _is_hash(real.name):
        return real.name
    metadata = file.parent / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
    if not metadata.is_file():
        return None
    lines = decoded(read_bytes(metadata, MOST_METADATA), metadata).split("\n")  # commit, hash, seconds since 1970
    if len(lines) < 3 or not _is_hash(lines[1]) or not re.fullmatch(r"\d{1,12}(\.\d+)?", lines[2]):
        return None
    return lines[1] if file.stat().st_mtime - 1 <= float(lines[2]) else None


def _is_hash(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) is not None
