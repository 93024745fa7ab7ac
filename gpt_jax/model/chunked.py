"""Attention in O(T) memory: one block of scores at a time, in the forward and in the backward pass.

The forward pass keeps running maxima and sums of each query's scores (the online softmax of Milakov & Gimelshein 2018,
arXiv:1805.02867) and saves only the output and each query's log-sum-exp; the backward pass recomputes the scores block
by block (FlashAttention: Dao et al. 2022, arXiv:2205.14135). No array has T · S elements, and key blocks that are
hidden from every query of a block are skipped.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from gpt_jax.config.errors import UserError
from gpt_jax.model.blocked import (
    Adjust,
    Operands,
    Tiling,
    by_tiles,
    floats,
    gradients_by_tiles,
    mix,
    nonzero,
    scores,
    start_of,
)
from gpt_jax.model.mask import Side
from gpt_jax.model.tiles import cut, padded

# Measured on a CPU: larger blocks fall out of its cache, smaller ones cost more in loop overhead than they save.
BLOCK_SCORES, SMALLEST, LARGEST = 2**20, 128, 512  # scores of a block; its queries and keys, least and most
# Up to this many scores per head, storing them costs less than recomputing; queries are then taken PART at a time.
AT_ONCE, PART = 256**2, 64


def chunked_attention(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B K S D"],
    value: Float[Array, "B K S E"],
    queries: Side,
    keys: Side,
    adjust: Adjust,
    params: Any,
    *,
    sinks: Float[Array, " H"] | None = None,
    normalizer: str,
    offset: Int[Array, ""] | int | None,
    reach: int | None,
    block: int | None = None,
) -> Float[Array, "B H T E"]:
    """Softmax or sigmoid attention: (B, H, T, D) queries → (B, H, T, E), the values weighted by their queries' scores.

    Args:
      query: already scaled. G = H / K neighbouring heads share a key head.
      queries, keys: steps and segments of each side; `adjust` gets those of one block. An unused slot has step < 0.
      adjust: maps float32 scores to logits, HIDDEN where a query may not see a key (keys of negative steps included).
        It must not close over traced arrays: pass those in `params`, a pytree for which gradients are computed.
      sinks: one logit per head that is added to the softmax's denominator and has no value (gpt-oss); zeros give
        softmax-plus-one.
      normalizer: "softmax" weights sum to 1; "sigmoid" maps each logit by itself.
      offset: step of the first query minus step of the first key, if the steps of both sides count up by one. None if
        they do not (a ring), or if a query may see later keys: then every block is visited. An int, known at tracing,
        saves work in short calls too.
      reach: keys at least this many steps before the query are hidden (W of a window); None: no limit.
      block: most queries, and most keys, of a block. None: a size that measured fast; a call with few scores is then
        computed in one piece.

    A query that sees no key gets zeros. Gradients reach query, key, value, sinks, and the floats of `params`,
    `queries` and `keys`.

    Raises:
      UserError: sinks with sigmoid attention.
    """
    if sinks is not None and normalizer == "sigmoid":
        raise UserError("sigmoid attention has no denominator that sinks could join: set sinks to None")
    (B, H, T, _), S = query.shape, key.shape[2]
    operands = Operands(query, key, value, queries, keys, jax.tree.map(jnp.asarray, params), sinks)
    if T * S <= (AT_ONCE if block is None else block**2):
        return _at_once(operands, adjust, normalizer, offset, reach)
    size = block_size(B * H, reach) if block is None else block
    # Without an offset, treat every key as earlier than every query, so that every block is visited.
    offset, reach = (S, None) if offset is None else (offset, reach)
    tiling = Tiling(adjust, normalizer, reach, min(size, T), min(size, S), S)
    query, queries = padded((query, queries), tiling.query_block)
    key, value, keys = padded((key, value, keys), tiling.key_block)
    whole = Operands(query, key, value, queries, keys, operands.params, sinks)
    return _attend(tiling, whole, jnp.asarray(offset, jnp.int32))[:, :, :T]


def block_size(rows: int, reach: int | None) -> int:
    """Queries, and keys, of a block, given B · H `rows` of scores: a power of two, at most about half a window."""
    size = min(max(math.isqrt(BLOCK_SCORES // rows), SMALLEST), LARGEST)
    if reach is not None:
        size = min(size, max(reach // 2, SMALLEST // 2))
    return 1 << (size.bit_length() - 1)


def _at_once(
    operands: Operands, adjust: Adjust, normalizer: str, offset: Int[Array, ""] | int | None, reach: int | None
) -> Float[Array, "B H T E"]:
    """Attention of a short call, with the scores stored for the backward pass: cheaper here than recomputing them."""
    T, S = operands.query.shape[2], operands.key.shape[2]
    if not isinstance(offset, int):
        return _whole(operands, adjust, normalizer)
    parts = []
    for start in range(0, T, PART):
        end = min(start + PART, T)
        first = 0 if reach is None else max(0, start + offset - reach + 1)
        query, queries = cut((operands.query, operands.queries), start, end - start)
        key, value, keys = cut((operands.key, operands.value, operands.keys), first, min(S, end + offset) - first)
        parts.append(_whole(Operands(query, key, value, queries, keys, *operands[5:]), adjust, normalizer))
    return jnp.concatenate(parts, axis=2)


def _whole(operands: Operands, adjust: Adjust, normalizer: str) -> Float[Array, "B H T E"]:
    query, key, value, queries, keys, params, sinks = operands
    logits = adjust(params, scores(query, key), queries, keys)
    if normalizer == "sigmoid":
        return mix(jax.nn.sigmoid(logits), value).astype(value.dtype)
    maximum, total = start_of(sinks, logits.shape)
    top = lax.stop_gradient(jnp.maximum(maximum, logits.max(axis=-1)))
    weights = jnp.exp(logits - top[..., None])
    total = total * jnp.exp(maximum - top) + weights.sum(axis=-1)
    return (mix(weights, value) / nonzero(total)[..., None]).astype(value.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(tiling: Tiling, operands: Operands, offset: Int[Array, ""]) -> Float[Array, "B H T E"]:
    return _forward(tiling, operands, offset)[0]


def _forward(tiling: Tiling, operands: Operands, offset: Int[Array, ""]) -> tuple[Array, Any]:
    out, log_sums = by_tiles(tiling, operands, offset)
    out = out.astype(operands.value.dtype)
    return out, (operands, offset, out, log_sums)


def _backward(tiling: Tiling, saved: Any, gradient: Float[Array, "B H T E"]) -> tuple[Operands, None]:
    """The gradients of the operands."""
    operands, offset, out, log_sums = jax.tree.map(jnp.asarray, saved)  # constants come back as NumPy arrays
    # The softmax's gradient subtracts Σ over keys of p · dp, which equals output · its gradient.
    products = jnp.sum(gradient.astype(jnp.float32) * out, axis=-1)
    sums = gradients_by_tiles(tiling, operands, offset, gradient, products[..., None], log_sums[..., None])
    if (sinks := operands.sinks) is not None:
        sums = sums._replace(sinks=-jnp.sum(jnp.exp(sinks[:, None] - log_sums) * products, axis=(0, 2)))
    return jax.tree.map(lambda total, x: total.astype(x.dtype), sums, floats(operands)), None


_attend.defvjp(_forward, _backward)
