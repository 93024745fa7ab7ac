"""Damaged and hostile safetensors files and indices: one sentence within bounds, and never other weights."""

import io
import json
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.config.errors import UserError
from gpt_jax.interop.weights import (
    HASHES,
    INDEX,
    METADATA,
    WEIGHTS,
    open_weights,
    parse_header,
    read_header,
    write_weights,
)
from tests.fuzz import bounded, damaged, damaged_json, read_or_refuse

SHAPES = {"a": (2, 3), "b": (3,), "c": (3, 2)}


def content(header: Any, data: int = 24) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def entry(shape: Any = (6,), span: Any = (0, 24), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": span}


def parse(file: bytes) -> Any:
    return parse_header(io.BytesIO(file), len(file), Path("m.safetensors"))


CASES: dict[str, tuple[bytes, str]] = {
    "length": ((2**63).to_bytes(8, "little") + b"{}", "not a complete safetensors file"),
    "short": (b"\2\0\0", "not a complete safetensors file"),
    "list": (content([]), "not a complete safetensors file"),
    "twice": (content(b'{"a": 1, "a": 2}'), "the key 'a' twice"),
    "deep": (content(b'{"a":' * 100_000), "too deep"),
    "UTF-8": (content(b'{"\xff": 1}'), "not UTF-8"),
    "metadata": (content({METADATA: {"a": 1}}, 0), "no group of texts"),
    "name": (content({"a\0\x1b[2J": entry()}), "is no name of a tensor"),
    "entry": (content({"a": [1]}), "has the entry"),
    "more": (content({"a": entry() | {"x": 1}}), "has the entry"),
    "less": (content({"a": {"dtype": "F32"}}), "has the entry"),
    "type": (content({"a": entry(dtype="F99")}), "the type 'F99', and gpt_jax reads only"),
    "type of type": (content({"a": entry(dtype=["F32"])}), "reads only"),
    "shape": (content({"a": entry(shape=6)}), "the shape 6"),
    "negative": (content({"a": entry(shape=(-2, -3))}), "the shape"),
    "float": (content({"a": entry(shape=(6.0,))}), "the shape"),
    "truth": (content({"a": entry((1,), (0, True), "U8")}, 1), "differ in size"),
    "axes": (content({"a": entry((1,) * 99, (0, 4))}, 4), r"has the shape \[1"),
    "product": (content({"a": entry(shape=(2**62, 2**62, 2**62))}), "differ in size"),
    "wraps": (content({"a": entry(shape=(2**32, 2**32, 6))}), "differ in size"),
    "start": (content({"a": entry(span=(-24, 0))}), "differ in size"),
    "order": (content({"a": entry(span=(24, 0))}), "differ in size"),
    "span": (content({"a": entry(span=(0, 12, 24))}), "differ in size"),
    "half": (content({"a": entry(span=(0.5, 24.5))}), "differ in size"),
    "overlap": (content({"a": entry(), "b": entry((3,), (0, 12))}), "overlaps another"),
    "hole": (content({"a": entry((1,), (0, 4)), "b": entry((3,), (8, 20))}, 20), "leaves a hole"),
    "first hole": (content({"a": entry((3,), (12, 24))}), "leaves a hole"),
    "beyond": (content({"a": entry()}, 20), "not a complete safetensors file"),
    "trailing": (content({"a": entry()}, 25), "not a complete safetensors file"),
    "hashes": (content({METADATA: {HASHES: "[]"}, "a": entry()}), "are of other tensors"),
    "hashes of another key": (content({METADATA: {"x": f'{{"a":"{"0" * 64}"}}'}, "a": entry()}), "the key of its"),
    "hash of another": (content({METADATA: {HASHES: '{"b": ""}'}, "a": entry()}), "are of other tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_header_that_lies_is_refused_before_anything_is_allocated(case: str) -> None:
    file, message = CASES[case]
    with bounded(), pytest.raises(UserError, match=message):
        parse(file)


def made(folder: Path, names: tuple[str, ...] = tuple(SHAPES), file: str = WEIGHTS) -> Path:
    arrays = {name: np.random.default_rng(ord(name)).normal(size=SHAPES[name]).astype(np.float32) for name in names}
    write_weights(folder / file, {name: (x.dtype, x.shape, lambda x=x: x) for name, x in arrays.items()})
    return folder / file


@pytest.mark.parametrize("name", [WEIGHTS, INDEX])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    make(tmp_path / name)
    with bounded(), pytest.raises(UserError, match="is not a file but"):
        open_weights(tmp_path)


PLACES = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}


def sharded(folder: Path, index: Any) -> Path:
    made(folder, ("a", "b"), "1.safetensors")
    made(folder, ("c",), "2.safetensors")
    (folder / INDEX).write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([], "must hold a JSON object"),
        ({}, "no group of file names"),
        ({"weight_map": ["1.safetensors"]}, "no group of file names"),
        ({"weight_map": {"a": 1}}, "no group of file names"),
        ({"weight_map": {"a": None}}, "no group of file names"),
        ({"weight_map": {"a": "../x.safetensors"}}, "outside of it"),
        ({"weight_map": {"a": "/etc/passwd"}}, "outside of it"),
        ({"weight_map": {"a": ""}}, "outside of it"),
        ({"weight_map": {"a": "absent"}}, "is missing"),
        ({"weight_map": {"a": "."}}, "outside of it|is not a file"),
        ({"weight_map": {"a": "pipe"}}, "is not a file but"),
        ({"weight_map": {"a": "folder"}}, "is not a file but"),
        ({"weight_map": {"c": "1.safetensors"}}, "1.safetensors lacks the tensor c"),
        ({"weight_map": {"c": "1.safetensors", "b": "2.safetensors"}}, "lacks the tensor"),
        ({"weight_map": {**PLACES, "c": "copy.safetensors"}}, "another file has, too"),
    ],
)  # fmt: skip
def test_an_index_that_lies_is_refused(tmp_path: Path, places: Any, message: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    made(tmp_path, ("a", "c"), "copy.safetensors")
    with bounded(), pytest.raises(UserError, match=message):
        open_weights(sharded(tmp_path, places))


def test_links_of_a_hubs_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    sharded(blobs, {"weight_map": PLACES})
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", file.name))
    assert set(open_weights(snapshot)) == set(SHAPES)


def test_a_changed_bit_of_our_own_tensors_is_noticed(tmp_path: Path) -> None:
    file = made(tmp_path)
    whole = file.read_bytes()
    begin = min(tensor.offset for tensor in read_header(file).values())
    for place in range(begin, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(UserError, match="has changed since it was written"):
            [tensor.read() for tensor in read_header(file).values()]


@cache
def original() -> tuple[bytes, dict[str, np.ndarray]]:
    with tempfile.TemporaryDirectory() as folder:
        file = made(Path(folder))
        return file.read_bytes(), {name: tensor.read() for name, tensor in read_header(file).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@given(st.data())
def test_a_damaged_file_of_ours_is_the_same_or_refused(folder: Path, data: st.DataObject) -> None:
    whole, wanted = original()
    file = folder / WEIGHTS
    file.write_bytes(data.draw(damaged(whole)))

    def same(found: dict[str, np.ndarray]) -> bool:
        return found.keys() == wanted.keys() and all(
            found[name].dtype == x.dtype and np.array_equal(found[name], x) for name, x in wanted.items()
        )

    read_or_refuse(lambda: {name: tensor.read() for name, tensor in read_header(file).items()}, same)


@given(st.data())
def test_a_damaged_header_is_read_or_refused(data: st.DataObject) -> None:
    header = {METADATA: {"format": "pt"}, "a": entry([2, 3], [0, 24]), "b": entry([6], [24, 48])}
    text = json.dumps(data.draw(damaged_json(header)))
    read_or_refuse(lambda: parse(content(text.encode(), 48)))


@given(st.data())
def test_a_damaged_index_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    if not (folder / INDEX).exists():
        sharded(folder, {})
    index = data.draw(damaged_json({"metadata": {"total_size": 60}, "weight_map": PLACES}))
    (folder / INDEX).write_text(json.dumps(index))
    (folder / WEIGHTS).unlink(missing_ok=True)
    read_or_refuse(lambda: open_weights(folder), lambda found: set(found) <= set(SHAPES))
