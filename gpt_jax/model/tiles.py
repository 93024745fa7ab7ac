"""Tiles of tokens: slicing them from the operands of attention, adding them back, and joining them.

A part is an array (…, tokens, width), or a `Side`, whose arrays all have their tokens on the last axis.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from gpt_jax.model.mask import Side


def cut(parts: tuple[Any, ...], start: Int[Array, ""] | int, size: int) -> tuple[Any, ...]:
    """Slices `size` tokens of each part, from token `start` on."""

    def tile(x: Array, from_end: int) -> Array:
        return lax.dynamic_slice_in_dim(x, start, size, axis=x.ndim - from_end)

    return tuple(jax.tree.map(lambda x: tile(x, 1), p) if isinstance(p, Side) else tile(p, 2) for p in parts)


def padded(parts: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """Pads each part to whole tiles of `size` tokens. Tokens added have step −1, which hides them from all others."""

    def pad(x: Array, from_end: int, fill: int = 0) -> Array:
        axis = x.ndim - from_end
        widths = [(0, -x.shape[axis] % size if i == axis else 0) for i in range(x.ndim)]
        return jnp.pad(x, widths, constant_values=fill)

    def pad_side(side: Side) -> Side:
        return jax.tree.map(lambda x: pad(x, 1), side)._replace(steps=pad(side.steps, 1, -1))

    return tuple(pad_side(p) if isinstance(p, Side) else pad(p, 2) for p in parts)


def add_at(sums: Any, terms: Any, start: Int[Array, ""]) -> Any:
    """`sums` with `terms` added from token `start` on; the last axis of both is tokens."""

    def add(total: Array, term: Array) -> Array:
        axis = total.ndim - 1
        before = lax.dynamic_slice_in_dim(total, start, term.shape[-1], axis=axis)
        return lax.dynamic_update_slice_in_dim(total, before + term, start, axis=axis)

    return jax.tree.map(add, sums, terms)


def joined(tiles: Array, axis: int) -> Array:
    """Concatenates tiles (n, …) along `axis`, the axis of a single tile that holds its tokens."""
    moved = jnp.moveaxis(tiles, 0, axis)
    return moved.reshape(*moved.shape[:axis], -1, *moved.shape[axis + 2 :])


def _concatenated(axis: int, *xs: Array) -> Array:
    return jnp.concatenate(xs, axis=axis)


def side_by_side(runs: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Concatenates the tokens of each part."""
    return tuple(
        jax.tree.map(partial(_concatenated, -1 if isinstance(parts[0], Side) else -2), *parts)
        for parts in zip(*runs, strict=True)
    )


def halves(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """Each part as its two halves, on a new first axis."""

    def cut(x: Array, from_end: int) -> Array:
        axis = x.ndim - from_end
        return jnp.moveaxis(x.reshape(*x.shape[:axis], 2, -1, *x.shape[axis + 1 :]), axis, 0)

    return tuple(jax.tree.map(lambda x: cut(x, 1), p) if isinstance(p, Side) else cut(p, 2) for p in parts)


def unhalved(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inverse of `halves`."""

    def whole(x: Array, from_end: int) -> Array:
        return joined(x, axis=x.ndim - 1 - from_end)

    return tuple(jax.tree.map(lambda x: whole(x, 1), p) if isinstance(p, Side) else whole(p, 2) for p in parts)
