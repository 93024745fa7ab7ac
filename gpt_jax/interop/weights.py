"""Reading and writing safetensors files one tensor at a time, so that memory never holds a second copy of the model.

The `safetensors` library either maps files into memory or needs all tensors at once, and both double the memory of the
process. The format is simple: a length, a JSON header and raw bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from gpt_jax.config.disk import writing
from gpt_jax.config.errors import MissingFile, UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEADER_LIMIT = 100_000_000  # bytes, a limit of the format
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

    def read(self) -> np.ndarray:
        """The tensor, in memory of its own."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk, `offset` bytes into `file`."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def read(self) -> np.ndarray:
        """The tensor, in memory of its own."""
        raw = np.empty(self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64)), np.uint8)
        with self.file.open("rb") as f:
            f.seek(self.offset)
            if f.readinto(raw.data) != raw.size:
                raise UserError(f"{self.file} is damaged (it ends within a tensor): download it again")
        return raw.view(self.dtype).reshape(self.shape)


def open_weights(folder: Path) -> Mapping[str, Tensor]:
    """Returns the tensors of a folder by name, from its safetensors file or from the files in its index.

    Raises:
      MissingFile: there is neither, or a file in the index is missing.
      UserError: a file is damaged, or lacks a tensor that the index places in it.
    """
    if (folder / WEIGHTS).exists():
        return read_header(folder / WEIGHTS)
    if not (folder / INDEX).exists():
        others = [p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack") for p in folder.glob(pattern)]
        advice = f"gpt_jax does not read {others[0]}, so save the model as safetensors" if others else "download one"
        raise MissingFile(f"{folder} has neither {WEIGHTS} nor {INDEX}: {advice}")
    try:
        places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / INDEX} is damaged: download it again") from None
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if not (folder / name).exists():
            raise MissingFile(f"{folder / name} is missing, and {INDEX} lists it: download it, too")
        tensors |= read_header(folder / name)
    for tensor, name in places.items():
        if tensor not in tensors:
            raise UserError(
                f"{folder / name} lacks the tensor {tensor}, which {INDEX} lists there: download both again"
            )
    return tensors


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of one file by name.

    Raises:
      UserError: the file is not safetensors, is damaged, or has a tensor of an unknown type.
    """
    damaged = UserError(f"{file} is not a complete safetensors file: download it again")
    with file.open("rb") as f:
        size = f.seek(0, 2)
        f.seek(0)
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise damaged
        try:
            header = json.loads(f.read(length))
        except ValueError:
            raise damaged from None
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise UserError(
                f"{file} has the tensor {name} of type {entry['dtype']}, and gpt_jax reads only {', '.join(DTYPES)}"
            )
        dtype, shape, (start, stop) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        if stop - start != dtype.itemsize * int(np.prod(shape, dtype=np.int64)) or 8 + length + stop > size:
            raise damaged
        tensors[name] = StoredTensor(file, dtype, shape, 8 + length + start)
    return tensors


def write_weights(
    file: Path, entries: Mapping[str, tuple[np.dtype, tuple[int, ...], Callable[[], np.ndarray]]]
) -> None:
    """Writes a safetensors file.

    `entries` maps names to (type, shape, function that makes the tensor); one tensor is made and written at a time.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, _) in entries.items():
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    with writing(file), file.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for dtype, shape, make in entries.values():
            tensor = np.asarray(make(), dtype, order="C")
            assert tensor.shape == shape
            f.write(tensor.reshape(-1).view(np.uint8).data)
