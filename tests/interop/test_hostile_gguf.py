"""Damaged and hostile GGUF files: one sentence within bounds, and never other weights."""

import dataclasses
import io
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.config.errors import UserError
from gpt_jax.interop.gguf import open_gguf
from gpt_jax.interop.gguf_file import parse_header, read_header
from gpt_jax.interop.hf import load_pretrained
from tests.fuzz import bounded, damaged, examples, read_or_refuse
from tests.interop.gguf_files import tensors, write

STRING, ARRAY, BOOL, U32 = 8, 9, 7, 4


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes = b"a", shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def file(keys: list[bytes], infos: list[bytes], data: int = 0, counts: tuple[int, int] | None = None) -> bytes:
    """`data` bytes follow the header, which is padded to 32 bytes."""
    sizes = (len(infos), len(keys)) if counts is None else counts
    header = b"GGUF" + struct.pack("<IQQ", 3, *sizes) + b"".join(keys) + b"".join(infos)
    return header + bytes(-len(header) % 32 + data)


def parse(content: bytes) -> Any:
    return parse_header(io.BytesIO(content), len(content), Path("m.gguf"))


HUGE = 2**32 - 1
CASES: dict[str, tuple[bytes, str]] = {
    "axes": (file([], [text(b"a") + struct.pack("<I", HUGE)], 1), "cannot follow|axes"),
    "tensors": (file([], [], counts=(2**62, 0)), "parts of .* cannot follow"),
    "keys": (file([], [], counts=(0, 2**62)), "parts of .* cannot follow"),
    "string": (file([struct.pack("<Q", 2**40)], []), "cannot follow"),
    "array": (file([key(b"k", ARRAY, struct.pack("<IQ", U32, 2**40))], []), "cannot follow"),
    "strings": (file([key(b"k", ARRAY, struct.pack("<IQ", STRING, 2**40))], []), "cannot follow"),
    "arrays": (file([key(b"k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 9000)], []), "nest deeper"),
    "key twice": (file([key(b"k", U32, b"abcd")] * 2, []), "the key 'k' twice"),
    "value": (file([key(b"k", 77, b"abcd")], []), "unknown type 77"),
    "truth": (file([key(b"k", BOOL, b"\2")], []), "neither 0 nor 1"),
    "UTF-8": (file([key(b"k", STRING, text(b"\xff"))], []), "not UTF-8"),
    "NUL": (file([key(b"k\0", U32, b"abcd")], []), r"'k\\x00' is no name"),
    "escape": (file([], [tensor(b"\x1b[2J")], 32), "is no name of a tensor"),
    "no axes": (file([], [tensor(shape=())], 32), "has 0 axes"),
    "empty": (file([], [tensor(shape=(0, 2**60))], 32), r"has the shape \(0,"),
    "twice": (file([], [tensor(), tensor(offset=32)], 64), "there twice"),
    "long name": (file([], [tensor(b"n" * 64)], 32), "longer than 63"),
    "overlap": (file([], [tensor(), tensor(b"b")], 64), "begins at byte .*, and must at"),
    "hole": (file([], [tensor(), tensor(b"b", offset=64)], 96), "begins at byte"),
    "unaligned": (file([], [tensor(), tensor(b"b", offset=36)], 96), "begins at byte"),
    "offset": (file([], [tensor(offset=2**64 - 32)], 32), "begins at byte"),
    "beyond": (file([], [tensor(shape=(9,))], 32), "ends within the tensor 'a'"),
    "product": (file([], [tensor(shape=(2**33, 2**33, 2**33))], 32), "ends within the tensor"),
    "rows": (file([], [tensor(shape=(33,), kind=2)], 32), "rows of 33, which Q4_0 cannot store"),
    "trailing": (file([], [tensor()], 64), "32 bytes follow its last tensor"),
    "type": (file([], [tensor(kind=99)], 32), "of type 99: install a newer gguf"),
    **{
        f"alignment {n}": (file([key(b"general.alignment", U32, struct.pack("<I", n))], [tensor()], 32), "power of 2")
        for n in (0, 24)
    },
    "alignment": (file([key(b"general.alignment", STRING, text(b"32"))], [tensor()], 32), "power of 2"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_header_that_lies_is_refused_before_anything_is_allocated(case: str) -> None:
    content, message = CASES[case]
    with bounded(), pytest.raises(UserError, match=message):
        parse(content)


def test_a_legal_file_is_read() -> None:
    header = file([key(b"general.alignment", U32, struct.pack("<I", 64))], [tensor(shape=(4, 2))])
    values, found = parse(header + bytes(-len(header) % 64 + 32))
    assert values == {"general.alignment": 64} and found["a"].shape == (2, 4) and found["a"].offset % 64 == 0
    nested = struct.pack("<IQIQ", ARRAY, 1, U32, 1) + struct.pack("<I", 5)
    assert parse(file([key(b"k", ARRAY, nested)], [])) == ({"k": [[5]]}, {})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"block_count": "2"}, '"block_count" is .2., and must be a whole number'),
        ({"block_count": [2, 3]}, "layers have one size"),
        ({"attention.head_count": 0}, '"attention.head_count" is 0, and must lie in 1'),
        ({"embedding_length": 2.0}, '"embedding_length" is 2.0, and must be a whole number'),
        ({"attention.layer_norm_rms_epsilon": float("inf")}, '"attention.layer_norm_rms_epsilon" is inf'),
        ({"rope.freq_base": float("nan")}, '"rope.freq_base" is nan'),
        ({"rope.freq_base": 0.0}, '"rope.freq_base" is 0.0'),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": -2.0}, '"rope.scaling.factor" is -2.0'),
        ({"attention.causal": 1}, '"attention.causal": 1, which must be true or false'),
        ({"tokenizer.ggml.eos_token_id": 2**31}, 'eos_token_id'),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "tokens"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "merge"),
        ({"tokenizer.ggml.merges": ["zz zzz"]}, "cannot be made|is damaged"),
        ({"tokenizer.ggml.model": 3}, "model|kind"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    write(tmp_path / "m.gguf", tensors(), keys=keys)
    with bounded(), pytest.raises(UserError, match=message):
        load_pretrained(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    "factors",
    [np.ones(3, np.float32), np.zeros(4, np.float32), np.full(4, np.nan, np.float32), np.ones((4, 1), np.float32)],
)
def test_divisors_of_frequencies_fit_the_heads(tmp_path: Path, factors: np.ndarray) -> None:
    write(tmp_path / "m.gguf", tensors(), extra={"rope_freqs.weight": factors})
    with pytest.raises(UserError, match="rope_freqs.weight"):
        load_pretrained(tmp_path / "m.gguf")


def test_a_16_bit_type_is_that_of_the_file(tmp_path: Path) -> None:
    """F16 and BF16 have one size, so that only the file's own type can tell them apart."""
    half = gguf.GGMLQuantizationType.F16
    write(tmp_path / "m.gguf", tensors(), kind=half, keys={"general.file_type": gguf.LlamaFileType.MOSTLY_F16.value})
    whole = (tmp_path / "m.gguf").read_bytes()
    place = whole.index(b"blk.1.ffn_up.weight") + len(b"blk.1.ffn_up.weight") + 4 + 16
    assert whole[place] == half
    load_pretrained(tmp_path / "m.gguf")
    changed = bytearray(whole)
    changed[place] = gguf.GGMLQuantizationType.BF16
    (tmp_path / "m.gguf").write_bytes(changed)
    with pytest.raises(UserError, match="blk.1.ffn_up.weight is BF16"):
        load_pretrained(tmp_path / "m.gguf")


@cache
def original(tokenizer: bool = False) -> tuple[bytes, int]:
    """A file, and the size of its header."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.gguf")
        write(path, tensors(), tokenizer=tokenizer)
        return path.read_bytes(), min(x.offset for x in read_header(path)[1].values())


@cache
def opened() -> tuple[Any, Any]:
    return loaded(original()[0])


def loaded(content: bytes, load: Callable[[Path], Any] = load_pretrained) -> Any:
    with tempfile.NamedTemporaryFile(suffix=".gguf") as f:
        f.write(content)
        f.flush()
        return load(Path(f.name))


def same(found: Any) -> bool:
    model, params, _ = found
    wanted, kept, _ = opened()
    block = wanted.config.blocks[0]

    def comparable(config: Any) -> Any:
        """Without what a legal file may have too: the context's length, RoPE and the norms' eps."""
        position = block.attention.position
        blocks = tuple(
            dataclasses.replace(b, attention=dataclasses.replace(b.attention, position=position), norm=block.norm)
            for b in config.blocks
        )
        return dataclasses.replace(config, blocks=blocks, final_norm=block.norm, context_length=64)

    assert comparable(model.config) == comparable(wanted.config)
    return jax.tree.all(jax.tree.map(np.array_equal, params, kept))


@examples(15)
@given(st.data())
def test_a_damaged_header_loads_the_same_weights_or_none(data: st.DataObject) -> None:
    content, size = original()
    changed = data.draw(damaged(content[:size])) + content[size:]
    read_or_refuse(lambda: loaded(changed), same)


@examples(15)
@given(st.data())
def test_a_damaged_file_with_a_tokenizer_is_read_or_refused(data: st.DataObject) -> None:
    content = original(True)[0]
    read_or_refuse(lambda: loaded(data.draw(damaged(content)), open_gguf))
