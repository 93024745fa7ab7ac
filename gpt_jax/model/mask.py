"""Which keys a query may see. The one place that defines a window: W keys, the query's own position included."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from gpt_jax import config


def allowed(
    mask: config.MaskConfig,
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
    seen = (distance >= 0) & (key_steps >= 0)
    if isinstance(mask, config.Window):
        seen &= distance < mask.size
    seen = seen[None]
    if padding is not None:
        seen &= key_steps[None, None, :] >= padding[:, None, None]
    if query_segments is not None and key_segments is not None:
        seen &= query_segments[:, :, None] == key_segments[:, None, :]
    return jnp.asarray(seen)
