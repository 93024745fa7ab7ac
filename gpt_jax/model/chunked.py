"""Attention in O(T) memory: one block of scores at a time, in the forward and in the backward pass.

The forward pass keeps running maxima and sums of each query's scores (the online softmax of Milakov & Gimelshein 2018,
arXiv:1805.02867) and saves only the output and each query's log-sum-exp; the backward pass recomputes the scores block
by block (FlashAttention: Dao et al. 2022, arXiv:2205.14135). No array has T · S elements, and key blocks that are
hidden from every query of a block are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from gpt_jax.config.errors import UserError
from gpt_jax.model.mask import Side
from gpt_jax.model.tiles import add_at, cut, joined, padded

# (params, scores, queries, keys) → logits: applies softcap and biases, and writes HIDDEN where the mask hides a key.
Adjust = Callable[[Any, Float[Array, "B H t s"], Side, Side], Float[Array, "B H t s"]]

HIDDEN = float(np.finfo(np.float32).min)
# Initial value of running maxima: below every real score, and so far above HIDDEN that exp(HIDDEN − it) is exactly 0.
LOWEST = HIDDEN / 2
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


class Operands(NamedTuple):
    """The operands of attention that may have gradients."""

    query: Float[Array, "B H T D"]
    key: Float[Array, "B K S D"]
    value: Float[Array, "B K S E"]
    queries: Side
    keys: Side
    params: Any
    sinks: Float[Array, " H"] | None


class Tiling(NamedTuple):
    """The settings that are static in the compiled program."""

    adjust: Adjust
    normalizer: str
    reach: int | None
    query_block: int
    key_block: int
    length: int  # S before padding

    def visible(self, i: Int[Array, ""], offset: Int[Array, ""]) -> tuple[Any, Array]:
        """(start, stop) of the key blocks that some query of query block i may see."""
        first = i * self.query_block + offset
        start = 0 if self.reach is None else jnp.maximum(first - self.reach + 1, 0) // self.key_block
        return start, jnp.minimum(first + self.query_block - 1, self.length - 1) // self.key_block + 1


def scores(query: Float[Array, "B H t D"], key: Float[Array, "B K s D"]) -> Float[Array, "B H t s"]:
    """q · k in float32, for H query heads and K key heads."""
    (B, H, T, _), (_, K, S, _) = query.shape, key.shape
    products = jnp.einsum("bknd,bksd->bkns", _fold(query, K), key, preferred_element_type=jnp.float32)
    return products.reshape(B, H, T, S)


def _fold(x: Float[Array, "B H t N"], kv_heads: int) -> Float[Array, "B K rows N"]:
    """Stacks the G heads that share a key head: (B, K, G · t, N)."""
    B, H, T, N = x.shape
    return x.reshape(B, kv_heads, H // kv_heads * T, N)


def _mix(weights: Float[Array, "B H t s"], value: Float[Array, "B K s E"]) -> Float[Array, "B H t E"]:
    """Σ over s of weight · value, in float32."""
    rows = _fold(weights.astype(value.dtype), value.shape[1])
    mixed = jnp.einsum("bkns,bkse->bkne", rows, value, preferred_element_type=jnp.float32)
    return mixed.reshape(*weights.shape[:3], value.shape[3])


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
        return _mix(jax.nn.sigmoid(logits), value).astype(value.dtype)
    maximum, total = _start(sinks, logits.shape)
    top = lax.stop_gradient(jnp.maximum(maximum, logits.max(axis=-1)))
    weights = jnp.exp(logits - top[..., None])
    total = total * jnp.exp(maximum - top) + weights.sum(axis=-1)
    return (_mix(weights, value) / _nonzero(total)[..., None]).astype(value.dtype)


def _start(sinks: Float[Array, " H"] | None, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Running maximum and Σ exp(logit − maximum) before the first key: those of the sink, if there is one."""
    maximum, total = (LOWEST, 0.0) if sinks is None else (sinks.astype(jnp.float32)[:, None], 1.0)
    return jnp.broadcast_to(jnp.asarray(maximum), shape[:3]), jnp.full(shape[:3], total)


def _nonzero(total: Array) -> Array:
    return jnp.where(total > 0, total, 1.0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(tiling: Tiling, operands: Operands, offset: Int[Array, ""]) -> Float[Array, "B H T E"]:
    return _forward(tiling, operands, offset)[0]


def _forward(tiling: Tiling, operands: Operands, offset: Int[Array, ""]) -> tuple[Array, Any]:
    def query_block(_: None, i: Array) -> tuple[None, tuple[Array, Array]]:
        query, queries = cut((operands.query, operands.queries), i * tiling.query_block, tiling.query_block)

        def visit(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            maximum, total, mixed = state
            start = j * tiling.key_block
            key, value, keys = cut((operands.key, operands.value, operands.keys), start, tiling.key_block)
            logits = tiling.adjust(operands.params, scores(query, key), queries, keys)
            if tiling.normalizer == "sigmoid":
                return maximum, total, mixed + _mix(jax.nn.sigmoid(logits), value)
            top = jnp.maximum(maximum, logits.max(axis=-1))
            weights, shrink = jnp.exp(logits - top[..., None]), jnp.exp(maximum - top)
            return top, total * shrink + weights.sum(axis=-1), mixed * shrink[..., None] + _mix(weights, value)

        mixed = jnp.zeros((*query.shape[:3], operands.value.shape[3]))
        state = (*_start(operands.sinks, query.shape), mixed)
        maximum, total, mixed = lax.fori_loop(*tiling.visible(i, offset), visit, state)
        out = mixed if tiling.normalizer == "sigmoid" else mixed / _nonzero(total)[..., None]
        return None, (out.astype(operands.value.dtype), maximum + jnp.log(_nonzero(total)))

    out, log_sums = lax.scan(query_block, None, jnp.arange(operands.query.shape[2] // tiling.query_block))[1]
    out, log_sums = joined(out, axis=2), joined(log_sums, axis=2)
    return out, (operands, offset, out, log_sums)


def _backward(tiling: Tiling, saved: Any, gradient: Float[Array, "B H T E"]) -> tuple[Operands, None]:
    """The gradients of the operands: `grad_…` are sums over blocks, `d_…` the terms of one block."""
    saved = jax.tree.map(jnp.asarray, saved)  # constants come back as NumPy arrays
    (query, key, value, queries, keys, params, sinks), offset, out, log_sums = saved
    K = key.shape[1]
    # The softmax's gradient subtracts Σ over keys of p · dp, which equals output · its gradient.
    products = jnp.sum(gradient.astype(jnp.float32) * out, axis=-1)
    rows = query, gradient, products[..., None], log_sums[..., None], queries

    def query_block(sums: Any, i: Array) -> tuple[Any, Any]:
        query, gradient, product, log_sum, queries = cut(rows, i * tiling.query_block, tiling.query_block)
        # Sums over queries contract the last axis, which a CPU does 1.5 × as fast.
        columns, gradient_columns = (_fold(x, K).swapaxes(2, 3) for x in (query, gradient))

        def visit(j: Array, sums: Any) -> Any:
            grad_queries, grad_keys, grad_params = sums
            key_block, value_block, keys_block = cut((key, value, keys), j * tiling.key_block, tiling.key_block)
            logits, pull_back = _vjp(tiling.adjust, params, scores(query, key_block), queries, keys_block)
            d_weights = scores(gradient, value_block)
            if tiling.normalizer == "sigmoid":
                weights = jax.nn.sigmoid(logits)
                d_logits = weights * (1 - weights) * d_weights
            else:
                weights = jnp.exp(logits - log_sum)
                d_logits = weights * (d_weights - product)
            d_params, d_scores, d_queries, d_keys = pull_back(d_logits)
            d_scores = d_scores.astype(key.dtype)
            d_key = _mix_keys(columns, d_scores), _mix_keys(gradient_columns, weights.astype(gradient.dtype)), d_keys
            return (
                _add(grad_queries, (_mix(d_scores, key_block), d_queries)),
                add_at(grad_keys, d_key, j * tiling.key_block),
                _add(grad_params, d_params),
            )

        grad_keys, grad_params = sums
        start = _zeros((query, queries)), grad_keys, grad_params
        grad_queries, grad_keys, grad_params = lax.fori_loop(*tiling.visible(i, offset), visit, start)
        return (grad_keys, grad_params), grad_queries

    start, blocks = _zeros(((key.mT, value.mT, keys), params)), jnp.arange(query.shape[2] // tiling.query_block)
    ((grad_key, grad_value, grad_keys), grad_params), (grad_query, grad_queries) = lax.scan(query_block, start, blocks)
    grad_queries = jax.tree.map(lambda x: joined(x, axis=x.ndim - 2), grad_queries)
    grad_sinks = None
    if sinks is not None:
        grad_sinks = -jnp.sum(jnp.exp(sinks[:, None] - log_sums) * products, axis=(0, 2))
    sums = Operands(
        joined(grad_query, axis=2), grad_key.mT, grad_value.mT, grad_queries, grad_keys, grad_params, grad_sinks
    )
    return jax.tree.map(lambda total, x: total.astype(x.dtype), sums, _floats(saved[0])), None


_attend.defvjp(_forward, _backward)


def _mix_keys(columns: Float[Array, "B K N rows"], weights: Float[Array, "B H t s"]) -> Float[Array, "B K N s"]:
    """The transpose of `_mix`: for each key, the weighted sum over queries of `columns`."""
    rows = _fold(weights, columns.shape[1])
    return jnp.einsum("bkdn,bkns->bkds", columns, rows, preferred_element_type=jnp.float32)


def _floats(tree: Any) -> Any:
    """The tree with None for every leaf that is not a float and so has no gradient."""
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else None, tree)


def _vjp(adjust: Adjust, *operands: Any) -> tuple[Array, Callable[[Array], Any]]:
    """The logits of `adjust`, and the function that pulls a gradient back to the floats among its operands."""

    def of_floats(floats: Any) -> Array:
        whole = jax.tree.map(lambda x, y: y if x is None else x, floats, operands, is_leaf=lambda x: x is None)
        return adjust(*whole)

    logits, pull_back = jax.vjp(of_floats, _floats(operands))
    return logits, lambda gradient: pull_back(gradient)[0]


def _zeros(tree: Any) -> Any:
    """Float32 zeros of the shape of each float leaf."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), _floats(tree))


def _add(sums: Any, terms: Any) -> Any:
    return jax.tree.map(jnp.add, sums, terms)
