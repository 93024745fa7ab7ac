"""Which keys a query may see. This file alone defines a window: W keys, the query's own position included."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gpt_jax import config as cfg
from gpt_jax.config.variant import implementation


class Side(NamedTuple):
    """Where N queries or N keys are.

    `steps` counts along the row, padding included; a negative step is a slot that is not written yet and that no query
    sees. `positions` restart in each of the `segments`. `decay` is a forget gate's Σ log f, the token's own included.
    """

    steps: Int[Array, " N"]
    positions: Int[Array, "b N"]
    segments: Int[Array, "B N"] | None = None
    decay: Float[Array, "B H N"] | None = None

    def cut(self, part: slice) -> Side:
        """The tokens of `part`."""
        segments = None if self.segments is None else self.segments[:, part]
        decay = None if self.decay is None else self.decay[:, :, part]
        return Side(self.steps[part], self.positions[:, part], segments, decay)


def _causal(mask: Any, distance: Int[Array, "1 T S"], queries: Side, keys: Side, prefix: Any) -> Bool[Array, "b T S"]:
    return distance >= 0


def _window(mask: cfg.Window, distance: Int[Array, "1 T S"], *_: Any) -> Bool[Array, "b T S"]:
    return (distance >= 0) & (distance < mask.size)


def _chunk(
    mask: cfg.Chunk, distance: Int[Array, "1 T S"], queries: Side, keys: Side, prefix: Any
) -> Bool[Array, "b T S"]:
    return (distance >= 0) & (distance <= (queries.positions % mask.size)[:, :, None])


def _prefix(
    mask: cfg.Prefix, distance: Int[Array, "1 T S"], queries: Side, keys: Side, prefix: Int[Array, " B"] | None
) -> Bool[Array, "b T S"]:
    if prefix is None:
        return distance >= 0
    return (distance >= 0) | (keys.positions < prefix[:, None])[:, None, :]


# mask → (the mask, steps from key to query, queries, keys, each row's prefix) → whether the query may see the key
VISIBLE: dict[type[cfg.MaskConfig], Callable[..., Bool[Array, "b T S"]]] = {
    cfg.Causal: _causal,
    cfg.Window: _window,
    cfg.Chunk: _chunk,
    cfg.Prefix: _prefix,
}


def reach(mask: cfg.MaskConfig) -> int | None:
    """The most steps that a query sees, its own included; None: no limit."""
    return mask.size if isinstance(mask, cfg.Window | cfg.Chunk) else None


def keys_per_query(mask: cfg.MaskConfig, length: int) -> Fraction:
    """The mean number of keys that a query of a row of `length` tokens sees. A prefix counts as a causal mask."""
    size = min(length, reach(mask) or length)
    whole = Fraction(size * (size + 1), 2)  # the pairs of the first `size` queries
    if isinstance(mask, cfg.Chunk):
        rest = length % size
        return (length // size * whole + Fraction(rest * (rest + 1), 2)) / length
    return (whole + (length - size) * size) / length


SPANS, SHORTEST_SPAN = 4, 64


def spans(mask: cfg.MaskConfig, length: int) -> list[tuple[slice, slice]]:
    """Cuts `length` tokens that attend to one another into a few spans: queries, and the keys that any of them may see.

    The keys that a span leaves out are masked for all of its queries, so only the amount of work changes: four spans
    compute 5/8 of all scores, in pieces that stay in a processor's cache.
    """
    if isinstance(mask, cfg.Prefix):
        return [(slice(0, length), slice(0, length))]
    size, back = max(SHORTEST_SPAN, -(-length // SPANS)), reach(mask)
    ends = [(start, min(start + size, length)) for start in range(0, length, size)]
    return [(slice(a, b), slice(0 if back is None else max(0, a - back + 1), b)) for a, b in ends]


def allowed(
    mask: cfg.MaskConfig,
    queries: Side,
    keys: Side,
    padding: Int[Array, " B"] | None = None,
    prefix: Int[Array, " B"] | None = None,
) -> Bool[Array, "b T S"]:
    """True where query t may see key s.

    Steps decide which token is earlier, because positions restart in every document. No query sees keys before step
    `padding[b]` (left padding), keys of negative steps (slots of a cache that are not written yet), or keys of another
    segment.
    """
    distance = (queries.steps[:, None] - keys.steps[None, :])[None]
    seen = implementation(VISIBLE, mask)(mask, distance, queries, keys, prefix) & (keys.steps >= 0)
    if padding is not None:
        seen &= keys.steps[None, None, :] >= padding[:, None, None]
    if queries.segments is not None and keys.segments is not None:
        seen &= queries.segments[:, :, None] == keys.segments[:, None, :]
    return jnp.asarray(seen)
