"""What the devices of the mesh's axis `sequence` send one another, of rows whose positions they divide in order.

Parts are arrays (…, tokens, width) and `Side`s, as in `tiles.py`. All of this runs on one device, inside `shard_map`;
`size` is the number of devices, s.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from gpt_jax.config.mesh import SEQUENCE
from gpt_jax.model.tiles import cut, halves, side_by_side, unhalved


def sent(size: int, tree: Any, hop: int) -> Any:
    """What the device `hop` places before this one holds."""
    pairs = [(i, (i + hop) % size) for i in range(size)]
    return jax.tree.map(lambda x: lax.ppermute(x, SEQUENCE, pairs), tree)


def with_halo(size: int, parts: tuple[Any, ...], back: int) -> tuple[Any, ...]:
    """A device's parts after the `back` tokens before them. What comes before the first token of a row is its end."""
    part = parts[0].shape[-2]
    found = [parts]
    for hop in range(1, -(-back // part) + 1):
        tokens = min(part, back - (hop - 1) * part)
        found.insert(0, sent(size, cut(parts, part - tokens, tokens), hop))
    return side_by_side(found)


def _routes(s: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Where the parts 2d, and the parts 2d + 1, of each device d go. Either sends one to each device: those of even
    number to all early places of even devices and all late ones of odd devices.
    """
    place = [part if part < s else 2 * s - 1 - part for part in range(2 * s)]
    return [(d, place[2 * d]) for d in range(s)], [(d, place[2 * d + 1]) for d in range(s)]


def to_zigzag(size: int, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """The parts d and 2s − 1 − d of the 2s parts of a row, on a new first axis, on device d."""
    even, odd = _routes(size)
    is_even = lax.axis_index(SEQUENCE) % 2 == 0

    def move(x: Array) -> Array:
        a, b = lax.ppermute(x[0], SEQUENCE, even), lax.ppermute(x[1], SEQUENCE, odd)
        return jnp.stack([jnp.where(is_even, a, b), jnp.where(is_even, b, a)])

    return jax.tree.map(move, halves(parts))


def from_zigzag(size: int, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inverse of `to_zigzag`."""
    even, odd = ([(to, start) for start, to in route] for route in _routes(size))
    is_even = lax.axis_index(SEQUENCE) % 2 == 0

    def move(x: Array) -> Array:
        a, b = jnp.where(is_even, x[0], x[1]), jnp.where(is_even, x[1], x[0])
        return jnp.stack([lax.ppermute(a, SEQUENCE, even), lax.ppermute(b, SEQUENCE, odd)])

    return unhalved(jax.tree.map(move, parts))
