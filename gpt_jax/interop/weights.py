"""Reading and writing safetensors files one tensor at a time, so that memory never holds a second copy of the model.

The `safetensors` library either maps files into memory or needs all tensors at once, and both double the memory of the
process. The format is simple: a length, a JSON header and raw bytes. Our own files have a hash of each tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from gpt_jax.config.disk import writing
from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.config.foreign import decoded, inside, open_regular, parse_json, quoted, read_json_object, shown

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEADER_LIMIT = 100_000_000  # bytes, a limit of the format
METADATA = "__metadata__"
HASHES = "gpt_jax.sha256"  # key of our metadata: JSON, name → SHA-256 of type, shape and bytes
MOST_AXES = 16
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


@runtime_checkable
class Tensor(Protocol):
    """A tensor that has not been read yet."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def read(self) -> np.ndarray:
        """The tensor, in memory of its own."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk, `offset` bytes into `file`; its SHA-256 if the file has it (`HASHES`)."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    sha256: str | None = None

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def read(self) -> np.ndarray:
        """The tensor, in memory of its own.

        Raises:
          UserError: the file ends within it, or its bytes are not those that were written.
        """
        raw = np.empty(self.nbytes, np.uint8)
        with open(open_regular(self.file), "rb") as f:
            f.seek(self.offset)
            if f.readinto(raw.data) != raw.size:
                raise UserError(f"{self.file} is damaged (it ends within a tensor): download it again")
        if self.sha256 is not None and _hash(self.dtype, self.shape, raw) != self.sha256:
            raise UserError(f"{self.file} is damaged (a tensor has changed since it was written): restore it")
        return raw.view(self.dtype).reshape(self.shape)


def open_weights(folder: Path) -> Mapping[str, Tensor]:
    """Returns the tensors of a folder by name, from its safetensors file or from the files in its index.

    Raises:
      MissingFile: there is neither, or a file in the index is missing.
      UserError: a file is damaged, lies outside of the folder, or lacks a tensor that the index places in it.
    """
    if os.path.lexists(folder / WEIGHTS):
        return read_header(folder / WEIGHTS)
    if not os.path.lexists(folder / INDEX):
        others = [p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack") for p in folder.glob(pattern)]
        advice = f"gpt_jax does not read {others[0]}, so save the model as safetensors" if others else "download one"
        raise MissingFile(f"{folder} has neither {WEIGHTS} nor {INDEX}: {advice}")
    places = read_index(folder / INDEX)
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(set(places.values())):
        file = inside(folder, name)
        if not os.path.lexists(file):
            raise MissingFile(f"{file} is missing, and {INDEX} lists it: download it, too")
        for tensor, stored in read_header(file).items():
            if tensor in tensors:
                raise UserError(
                    f"{file} has the tensor {shown(tensor)}, which another file has, too: download all again"
                )
            tensors[tensor] = stored
    for tensor, name in places.items():
        if tensor not in tensors or tensors[tensor].file != inside(folder, name):
            raise UserError(
                f"{folder / name} lacks the tensor {quoted(tensor)[1:-1]}, which {INDEX} lists there: download both"
                " again"
            )
    return tensors


def read_index(file: Path) -> dict[str, str]:
    """Returns tensor → name of its file. Raises UserError if the index has another form."""
    values = read_json_object(file)
    places = values["weight_map"] if "weight_map" in values else None
    if not isinstance(places, dict) or not all(isinstance(x, str) and x.isprintable() for x in places.values()):
        raise UserError(f'{file} is damaged (its "weight_map" is no group of file names): download it again')
    return places


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of one file by name.

    Raises:
      UserError: the file is not safetensors, is damaged, or has a tensor of an unknown type.
    """
    with open(open_regular(file), "rb") as f:
        return parse_header(f, os.fstat(f.fileno()).st_size, file)


def read_metadata(file: Path) -> dict[str, str]:
    """Returns the metadata of one file. Raises as `read_header`."""
    with open(open_regular(file), "rb") as f:
        return _read_json(f, os.fstat(f.fileno()).st_size, file)[1]


def parse_header(f: BufferedIOBase, size: int, file: Path) -> dict[str, StoredTensor]:
    """`read_header` of a stream of `size` bytes, which the messages call `file`."""
    header, metadata, begin = _read_json(f, size, file)
    hashes = _read_hashes(metadata, header, file)
    tensors, spans = {}, []
    for name, entry in header.items():
        if not name.isprintable():
            raise UserError(f"{file} is damaged ({shown(name)} is no name of a tensor): download it again")
        try:
            dtype, shape, start, stop = _entry(entry)
        except Damaged as error:
            raise UserError(f"{file} is damaged (the tensor {shown(name)} has {error}): download it again") from None
        spans.append((start, stop, name))
        tensors[name] = StoredTensor(file, dtype, shape, begin + start, None if hashes is None else hashes[name])
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise UserError(f"{file} is damaged ({shown(name)} overlaps another or leaves a hole): download it again")
        end = stop
    if begin + end != size:
        raise UserError(f"{file} is not a complete safetensors file: download it again")
    return tensors


def _read_json(f: BufferedIOBase, size: int, file: Path) -> tuple[dict[str, Any], dict[str, str], int]:
    """Returns the header of a file of `size` bytes without its metadata, the metadata, and where the data begin."""
    damaged = UserError(f"{file} is not a complete safetensors file: download it again")
    length = int.from_bytes(f.read(8), "little")
    if size < 8 or length > min(size - 8, HEADER_LIMIT):
        raise damaged
    text = f.read(length)
    header = parse_json(decoded(text, file), file) if text[:1] == b"{" else None
    if not isinstance(header, dict):
        raise damaged
    metadata = header.pop(METADATA) if METADATA in header else {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"{file} is damaged (its {METADATA} is no group of texts): download it again")
    return header, metadata, 8 + length


class Damaged(ValueError):
    """What is wrong with an entry, for a message."""


def _entry(entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Returns the type, shape, first byte and end of a tensor. Raises Damaged if they do not fit each other."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise Damaged(f"the entry {shown(entry)}, not dtype, shape and data_offsets")
    code, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise Damaged(f"the type {shown(code)}, and gpt_jax reads only {', '.join(DTYPES)}")
    if not _whole(shape) or len(shape) > MOST_AXES:
        raise Damaged(f"the shape {shown(shape)}")
    if not _whole(span) or len(span) != 2 or span[1] - span[0] != DTYPES[code].itemsize * math.prod(shape):
        raise Damaged(f"the shape {shape}, the type {code} and the bytes {shown(span)}, which differ in size")
    return DTYPES[code], tuple(shape), span[0], span[1]


def _whole(value: Any) -> bool:
    """Whether a value is a list of whole numbers from 0 on."""
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 2**63 for one in value)


def _read_hashes(metadata: Mapping[str, str], header: Mapping[str, Any], file: Path) -> dict[str, str] | None:
    """Returns name → SHA-256 of each tensor, or None if the file is not ours."""
    if HASHES not in metadata:
        if any(re.search(r'":"[0-9a-f]{64}"', value) for value in metadata.values()):
            raise UserError(f"{file} is damaged (the key of its {HASHES} has changed): restore it")
        return None
    hashes = parse_json(metadata[HASHES], file)
    texts = isinstance(hashes, dict) and all(isinstance(one, str) for one in hashes.values())
    if not texts or hashes.keys() != header.keys():
        raise UserError(f"{file} is damaged (its {HASHES} are of other tensors): restore it")
    return hashes


def _hash(dtype: np.dtype, shape: tuple[int, ...], raw: np.ndarray) -> str:
    """SHA-256 of a tensor; `raw` are its bytes."""
    found = hashlib.sha256(f"{CODES[dtype]} {list(shape)} ".encode())
    found.update(raw.data)
    return found.hexdigest()


def write_weights(
    file: Path,
    entries: Mapping[str, tuple[np.dtype, tuple[int, ...], Callable[[], np.ndarray]]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file with the hash of each tensor.

    `entries` maps names to (type, shape, function that makes the tensor); one tensor is made and written at a time.
    The hashes, which the header comes before, are filled in at the end.
    """
    header: dict[str, Any] = {}
    offset = 0
    for name, (dtype, shape, _) in entries.items():
        size = dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size

    def head(hashes: Mapping[str, str]) -> bytes:
        kept = {"format": "pt", **(metadata or {}), HASHES: json.dumps(hashes, separators=(",", ":"))}
        text = json.dumps({METADATA: kept, **header}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that the data are aligned
        return len(text).to_bytes(8, "little") + text

    hashes = dict.fromkeys(entries, "0" * 64)
    with writing(file), file.open("wb") as f:
        f.write(head(hashes))
        for name, (dtype, shape, make) in entries.items():
            tensor = np.asarray(make(), dtype, order="C")
            assert tensor.shape == shape
            raw = tensor.reshape(-1).view(np.uint8)
            f.write(raw.data)
            hashes[name] = _hash(dtype, shape, raw)
        f.seek(0)
        f.write(head(hashes))
