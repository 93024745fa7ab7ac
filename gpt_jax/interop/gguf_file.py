"""The GGUF format: key and value pairs, followed by tensors, which may be quantized.

The format is described in docs/gguf.md of ggml-org/ggml; versions 2 and 3 are supported. The `gguf` package dequantizes
tensors. Its reader takes two seconds and makes a Python object for each string of a vocabulary, so we read the header.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from gpt_jax.config.errors import UserError
from gpt_jax.config.foreign import open_regular, shown

MAGIC, VERSIONS = b"GGUF", (2, 3)
ALIGNMENT = "general.alignment"
AT_ONCE = 2**22  # elements to dequantize at a time
# type of a value → its format character in `struct`
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
BOOL, STRING, ARRAY = 7, 8, 9
# Limits of ggml's own reader: axes of a tensor, and bytes of its name.
MOST_AXES, MOST_NAME = 4, 63
MOST_HEADER = 256 << 20  # bytes; the largest vocabularies in use take 20 MB
DEEPEST = 4  # arrays of arrays; the format has them and no known file does


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantized tensor on disk, `offset` bytes into `file`; its `shape` is in row-major order, unlike in the file."""

    file: Path
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def dtype(self) -> np.dtype:
        """The type of the dequantized tensor."""
        return np.dtype(np.float32)

    @property
    def nbytes(self) -> int:
        size, width = gguf.GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // size * width

    def read(self) -> np.ndarray:
        """Reads and dequantizes the tensor to float32, a few rows at a time.

        Raises:
          UserError: the gguf package cannot dequantize its type, or the file has become shorter.
        """
        result = np.empty(self.shape, np.float32)
        rows = result.reshape(-1, self.shape[-1])
        width = gguf.quant_shape_to_byte_shape(rows.shape, self.kind)[-1]
        step = max(AT_ONCE // self.shape[-1], 1)
        with open(open_regular(self.file), "rb") as f:
            f.seek(self.offset)
            for start in range(0, len(rows), step):
                raw = np.fromfile(f, np.uint8, width * len(rows[start : start + step]))
                if raw.size != width * len(rows[start : start + step]):
                    raise UserError(f"{self.file} is damaged (it ends within a tensor): download it again")
                try:
                    rows[start : start + step] = gguf.dequantize(raw.reshape(-1, width), self.kind)
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

    @property
    def dtype(self) -> np.dtype:
        return self.tensor.dtype

    def read(self) -> np.ndarray:
        return self.change(self.tensor.read())


class Damaged(ValueError):
    """What is wrong with a file, for a message."""


def read_header(file: Path) -> tuple[dict[str, Any], dict[str, QuantizedTensor]]:
    """Returns the values of all keys, with arrays as lists, and the tensors by name.

    Time and memory are bounded by the size of the file: a count is compared with the bytes that are left before
    anything is made for it.

    Raises:
      UserError: the file is not GGUF, is damaged, or has an unknown version or type of tensor.
    """
    with open(open_regular(file), "rb") as f:
        size = os.fstat(f.fileno()).st_size
        return parse_header(f, size, file)


def parse_header(f: BufferedIOBase, size: int, file: Path) -> tuple[dict[str, Any], dict[str, QuantizedTensor]]:
    """`read_header` of a stream of `size` bytes, which the messages call `file`."""
    if f.read(len(MAGIC)) != MAGIC:
        raise UserError(f"{file} is not a GGUF file: give another one")
    header = _Header(f, min(size, MOST_HEADER) - len(MAGIC))
    try:
        (version,) = header.numbers("I")
        if version not in VERSIONS:
            raise UserError(f"{file} is GGUF of version {version}, and gpt_jax reads only {VERSIONS}, little-endian")
        tensor_count, key_count = header.numbers("QQ")
        header.need(key_count, 8 + 4 + 1)
        values: dict[str, Any] = {}
        for _ in range(key_count):
            key = header.name("key")
            if key in values:
                raise Damaged(f"it has the key {shown(key)} twice")
            values[key] = header.value(*header.numbers("I"))
        header.need(tensor_count, 8 + 4 + 8 + 4 + 8)
        infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensor_count):
            name = header.name("tensor")
            if name in infos or len(name.encode()) > MOST_NAME:
                raise Damaged(f"the tensor name {shown(name)} is there twice or longer than {MOST_NAME} bytes")
            infos[name] = (header.shape(name), *header.numbers("IQ"))
        alignment = values[ALIGNMENT] if ALIGNMENT in values else gguf.GGUF_DEFAULT_ALIGNMENT
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise Damaged(f"its {ALIGNMENT} is {shown(alignment)}, which is no power of 2")
        used = min(size, MOST_HEADER) - header.left
        return values, _placed(infos, file, -(-used // alignment) * alignment, alignment, size)
    except Damaged as error:
        raise UserError(f"{file} is damaged ({error}): download it again") from None


def _placed(
    infos: dict[str, tuple[tuple[int, ...], int, int]], file: Path, start: int, alignment: int, size: int
) -> dict[str, QuantizedTensor]:
    """The tensors, which must follow one another from byte `start` to the end of the file, padded to `alignment`.

    Raises Damaged if they do not, and UserError for an unknown type.
    """
    tensors: dict[str, QuantizedTensor] = {}
    end = start
    for name, (shape, number, offset) in infos.items():
        try:
            kind = gguf.GGMLQuantizationType(number)
        except ValueError:
            raise UserError(
                f"{file} has the tensor {shown(name)} of type {number}: install a newer gguf package, which may know it"
            ) from None
        tensor = QuantizedTensor(file, kind, shape, start + offset)
        if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            raise Damaged(f"the tensor {shown(name)} has rows of {shape[-1]}, which {kind.name} cannot store")
        begin = -(-end // alignment) * alignment
        if tensor.offset != begin:
            raise Damaged(f"the tensor {shown(name)} begins at byte {tensor.offset}, and must at {begin}")
        end = begin + tensor.nbytes
        if end > size:
            raise Damaged(f"it ends within the tensor {shown(name)}")
        tensors[name] = tensor
    if tensors and size > -(-end // alignment) * alignment:
        raise Damaged(f"{size - end:,} bytes follow its last tensor")
    return tensors


class _Header:
    """Reads the parts of a header, of which `left` bytes are not read yet. Methods raise Damaged if it ends."""

    def __init__(self, stream: BufferedIOBase, left: int) -> None:
        self.stream, self.left = stream, left

    def need(self, count: int, size: int) -> None:
        """Checks that `count` things of at least `size` bytes each can follow."""
        if count * size > self.left:
            raise Damaged(f"{count:,} parts of {size} bytes or more cannot follow in {max(self.left, 0):,} bytes")

    def exactly(self, size: int) -> bytes:
        self.need(size, 1)
        content = self.stream.read(size)
        self.left -= size
        if len(content) != size:
            raise Damaged("it ends within its header")
        return content

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{form}", self.exactly(struct.calcsize(f"<{form}")))

    def string(self) -> str:
        try:
            return self.exactly(*self.numbers("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise Damaged("a text is not UTF-8") from None

    def name(self, what: str) -> str:
        name = self.string()
        if not name or not name.isprintable():
            raise Damaged(f"{shown(name)} is no name of a {what}")
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        (axes,) = self.numbers("I")
        if not 1 <= axes <= MOST_AXES:
            raise Damaged(f"the tensor {shown(name)} has {axes} axes, not 1 to {MOST_AXES}")
        shape = self.numbers("Q" * axes)
        if 0 in shape:
            raise Damaged(f"the tensor {shown(name)} has the shape {shape}")
        return tuple(reversed(shape))

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, count = self.numbers("IQ")
            if depth == DEEPEST:
                raise Damaged(f"its arrays nest deeper than {DEEPEST}")
            self.need(count, 1 if kind not in (STRING, ARRAY) else 8 if kind == STRING else 12)
            if kind in (STRING, ARRAY):
                return [self.value(kind, depth + 1) for _ in range(count)]
            return [*self.scalars(kind, count)]
        return self.scalars(kind, 1)[0]

    def scalars(self, kind: int, count: int) -> tuple[Any, ...]:
        if kind not in SCALARS:
            raise Damaged(f"it has a value of the unknown type {kind}")
        if kind != BOOL:
            return self.numbers(f"{count}{SCALARS[kind]}")
        raw = self.exactly(count)
        if any(byte > 1 for byte in raw):
            raise Damaged("a truth value is neither 0 nor 1")
        return tuple(byte == 1 for byte in raw)
