"""Damages files for the tests of readers. `pytest --hypothesis-profile=fuzz` tries 5,000 per reader."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from gpt_jax.config.errors import UserError

SECONDS, MEMORY = 20.0, 2 << 30  # what a reader may take for a file under 1 MB
FEW = 1000


def examples(count: int) -> settings:
    """`count` examples per test, unless the profile in use asks for thousands."""
    many = settings.default.max_examples if settings.default is not None else 0
    return settings(max_examples=many if many > FEW else count, suppress_health_check=list(HealthCheck))


EXTREME = (0, 1, 0x7F, 0x80, 0xFF)


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    """`original` with some bits flipped, bytes replaced, a part cut, repeated, zeroed or moved, or its end cut off."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        size = len(content)
        start = draw(st.integers(0, max(size - 1, 0)))
        length = draw(st.integers(1, 16))
        kind = draw(st.sampled_from(["bit", "byte", "number", "cut", "repeat", "zero", "insert", "end"]))
        if kind == "bit" and size:
            content[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and size:
            content[start] = draw(st.sampled_from(EXTREME) | st.integers(0, 255))
        elif kind == "number":
            width = draw(st.sampled_from([4, 8]))
            value = draw(st.sampled_from([2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1))
            content[start : start + width] = (value % 256**width).to_bytes(width, "little")
        elif kind == "cut":
            del content[start : start + length]
        elif kind == "repeat":
            content[start:start] = content[start : start + length]
        elif kind == "zero":
            content[start : start + length] = bytes(min(length, max(size - start, 0)))
        elif kind == "insert":
            content[start:start] = draw(st.binary(min_size=1, max_size=8))
        else:
            del content[start:]
    return bytes(content)


JSON_VALUES = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        2,
        2.9,
        2**31,
        2**62,
        10**9,
        1e308,
        float("inf"),
        float("nan"),
        "",
        "x",
        "../x",
        "/etc/passwd",
    ]
) | st.sampled_from([[], {}, [None], {"": None}, [[[]]], "\x1b[2J", "\ud800", ["a", 1], {"type": "x"}])


@st.composite
def damaged_json(draw: st.DrawFn, original: Any) -> Any:
    """A JSON value with one to three of its parts removed, repeated under another name, or replaced."""
    value = _copied(original)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            return draw(JSON_VALUES)
        holder, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["remove", "replace", "replace", "rename"]))
        if kind == "remove":
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from([f"{key}x", "unknown", ""]))] = holder.pop(key)
        else:
            holder[key] = _copied(draw(JSON_VALUES))
    return value


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) below a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


@contextmanager
def bounded() -> Iterator[None]:
    """Fails if its body takes more time or memory than a reader may for a file under 1 MB."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert time.monotonic() - start < SECONDS and grown < MEMORY


def read_or_refuse(read: Callable[[], Any], same: Callable[[Any], bool] = lambda _: True) -> str | None:
    """Reads a damaged file within bounds. Returns the one sentence that refused it, or None if it was read; what was
    read must then satisfy `same`. Any other exception fails the test.
    """
    with bounded():
        try:
            result = read()
        except UserError as error:
            sentence = str(error)
            assert sentence.strip() and "\n" not in sentence and "\x1b" not in sentence and "Traceback" not in sentence
            return sentence
    assert same(result), "other content was read without an error"
    return None
