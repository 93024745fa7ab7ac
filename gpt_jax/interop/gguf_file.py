"""The GGUF format: key and value pairs, followed by tensors, which may be quantized.

The format is described in docs/gguf.md of ggml-org/ggml; versions 2 and 3 are supported. The `gguf` package dequantizes
tensors. Its reader takes two seconds and makes a Python object for each string of a vocabulary, so we read the header.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np

from gpt_jax.config.errors import UserError

MAGIC, VERSIONS = b"GGUF", (2, 3)
ALIGNMENT = "general.alignment"
AT_ONCE = 2**22  # elements to dequantize at a time
# type of a value → its format character in `struct`
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantized tensor on disk, `offset` bytes into `file`; its `shape` is in row-major order, unlike in the file."""

    file: Path
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        size, width = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape, dtype=np.int64)) // size * width

    def read(self) -> np.ndarray:
        """Reads and dequantizes the tensor to float32, a few rows at a time.

        Raises:
          UserError: the gguf package cannot dequantize its type.
        """
        result = np.empty(self.shape, np.float32)
        rows = result.reshape(-1, self.shape[-1])
        width = gguf.quant_shape_to_byte_shape(rows.shape, self.kind)[-1]
        step = max(AT_ONCE // self.shape[-1], 1)
        with self.file.open("rb") as f:
            f.seek(self.offset)
            for start in range(0, len(rows), step):
                raw = np.fromfile(f, np.uint8, width * len(rows[start : start + step])).reshape(-1, width)
                try:
                    rows[start : start + step] = gguf.dequantize(raw, self.kind)
                except NotImplementedError:
                    raise UserError(
                        f"the gguf package cannot dequantize {self.kind.name}: give another file than {self.file}"
                    ) from None
        return result


@dataclass(frozen=True)
class ConvertedTensor:
    """A tensor that is computed from another one when it is read."""

    tensor: QuantizedTensor
    change: Callable[[np.ndarray], np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def read(self) -> np.ndarray:
        return self.change(self.tensor.read())


def read_header(file: Path) -> tuple[dict[str, Any], dict[str, QuantizedTensor]]:
    """Returns the values of all keys, with arrays as lists, and the tensors by name.

    Raises:
      UserError: the file is not GGUF, is damaged, or has an unknown version or type of tensor.
    """
    damaged = UserError(f"{file} is damaged: download it again")
    with file.open("rb") as f:
        if f.read(4) != MAGIC:
            raise UserError(f"{file} is not a GGUF file: give another one")
        try:
            (version,) = _unpack(f, "I")
            if version not in VERSIONS:
                raise UserError(
                    f"{file} is GGUF of version {version}, and gpt_jax reads only {VERSIONS}, little-endian"
                )
            tensor_count, key_count = _unpack(f, "QQ")
            values = {}
            for _ in range(key_count):
                key = _string(f)
                values[key] = _value(f, *_unpack(f, "I"))
            infos = [(_string(f), _dimensions(f), *_unpack(f, "IQ")) for _ in range(tensor_count)]
            alignment = values[ALIGNMENT] if ALIGNMENT in values else gguf.GGUF_DEFAULT_ALIGNMENT
            start = -(-f.tell() // alignment) * alignment
        except (EOFError, UnicodeDecodeError, KeyError):
            raise damaged from None
        size = f.seek(0, 2)
    tensors = {}
    for name, shape, kind, offset in infos:
        try:
            tensor = QuantizedTensor(file, gguf.GGMLQuantizationType(kind), shape, start + offset)
        except ValueError:
            raise UserError(
                f"{file} has the tensor {name} of type {kind}: install a newer gguf package, which may know it"
            ) from None
        if tensor.offset + tensor.nbytes > size:
            raise damaged
        tensors[name] = tensor
    return values, tensors


def _dimensions(f: BinaryIO) -> tuple[int, ...]:
    (count,) = _unpack(f, "I")
    return tuple(reversed(_unpack(f, "Q" * count)))


def _value(f: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _string(f)
    if kind != ARRAY:
        return _unpack(f, SCALARS[kind])[0]
    kind, count = _unpack(f, "IQ")
    if kind in (STRING, ARRAY):
        return [_value(f, kind) for _ in range(count)]
    return [*_unpack(f, f"{count}{SCALARS[kind]}")]


def _string(f: BinaryIO) -> str:
    return _exactly(f, *_unpack(f, "Q")).decode("utf-8")


def _unpack(f: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{form}", _exactly(f, struct.calcsize(f"<{form}")))


def _exactly(f: BinaryIO, size: int) -> bytes:
    if size > 2**31 or len(content := f.read(size)) != size:
        raise EOFError
    return content
