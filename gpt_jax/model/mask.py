"""Which keys a query may see. The one place that defines a window: W keys, the query's own position included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from gpt_jax import config as cfg
from gpt_jax.conversion import implementation

# mask, how many steps the key lies before the query → may it be seen?
VISIBLE: dict[type[cfg.MaskConfig], Callable[[Any, Int[Array, "T S"]], Bool[Array, "T S"]]] = {
    cfg.Causal: lambda mask, distance: distance >= 0,
    cfg.Window: lambda mask, distance: (distance >= 0) & (distance < mask.size),
}


SPANS, SHORTEST_SPAN = 4, 64


def spans(mask: cfg.MaskConfig, length: int) -> list[tuple[slice, slice]]:
    """Cuts `length` tokens that attend to one another into a few spans: queries, and the keys that any of them may see.

    What a span leaves out is masked for all its queries, so nothing changes but the work: with four spans 5/8 of the
    whole, in pieces that stay in a processor's cache.
    """
    size = max(SHORTEST_SPAN, -(-length // SPANS))
    reach = mask.size if isinstance(mask, cfg.Window) else length
    ends = [(start, min(start + size, length)) for start in range(0, length, size)]
    return [(slice(start, end), slice(max(0, start - reach + 1), end)) for start, end in ends]


def allowed(
    mask: cfg.MaskConfig,
    query_steps: Int[Array, " T"],
    key_steps: Int[Array, " S"],
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
    padding: Int[Array, " B"] | None = None,
) -> Bool[Array, "b T S"]:
    """True where query t may see key s.

    Steps count tokens along the row, padding included; they, not positions, decide what is earlier, so that positions
    that restart in every document can't let a later token through. Keys before step `padding[b]` (left padding) or
    before step 0 (a cache's slot not yet written) are seen by nobody, keys of another segment neither.
    """
    distance = query_steps[:, None] - key_steps[None, :]
    seen = (implementation(VISIBLE, mask)(mask, distance) & (key_steps >= 0))[None]
    if padding is not None:
        seen &= key_steps[None, None, :] >= padding[:, None, None]
    if query_segments is not None and key_segments is not None:
        seen &= query_segments[:, :, None] == key_segments[:, None, :]
    return jnp.asarray(seen)
