"""One block of queries against one block of keys, tile by tile: what attention in O(T) memory is made of.

The forward pass keeps running maxima and sums of each query's scores (the online softmax of Milakov & Gimelshein 2018,
arXiv:1805.02867); the backward pass recomputes the scores of each tile (FlashAttention: Dao et al. 2022,
arXiv:2205.14135). Tiles that are hidden from every query of a tile are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from gpt_jax.model.mask import Side
from gpt_jax.model.tiles import add_at, cut, joined

# (params, scores, queries, keys) → logits: applies softcap and biases, and writes HIDDEN where the mask hides a key.
Adjust = Callable[[Any, Float[Array, "B H t s"], Side, Side], Float[Array, "B H t s"]]

HIDDEN = float(np.finfo(np.float32).min)
# Initial value of running maxima: below every real score, and so far above HIDDEN that exp(HIDDEN − it) is exactly 0.
LOWEST = HIDDEN / 2


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
    grouped = query.reshape(B, K, H // K, T, -1)
    return jnp.einsum("bkgtd,bksd->bkgts", grouped, key, preferred_element_type=jnp.float32).reshape(B, H, T, S)


def _columns(x: Float[Array, "B H t N"], kv_heads: int) -> Float[Array, "B K N G t"]:
    """The tokens of the G heads that share a key head, on the last axes."""
    B, H, T, N = x.shape
    return jnp.moveaxis(x.reshape(B, kv_heads, H // kv_heads, T, N), -1, 2)


def mix(weights: Float[Array, "B H t s"], value: Float[Array, "B K s E"]) -> Float[Array, "B H t E"]:
    """Σ over s of weight · value, in float32."""
    (B, H, T, S), K = weights.shape, value.shape[1]
    grouped = weights.astype(value.dtype).reshape(B, K, H // K, T, S)
    mixed = jnp.einsum("bkgts,bkse->bkgte", grouped, value, preferred_element_type=jnp.float32)
    return mixed.reshape(B, H, T, -1)


def start_of(sinks: Float[Array, " H"] | None, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Running maximum and Σ exp(logit − maximum) before the first key: those of the sink, if there is one."""
    maximum, total = (LOWEST, 0.0) if sinks is None else (sinks.astype(jnp.float32)[:, None], 1.0)
    return jnp.broadcast_to(jnp.asarray(maximum), shape[:3]), jnp.full(shape[:3], total)


def nonzero(total: Array) -> Array:
    return jnp.where(total > 0, total, 1.0)


def by_tiles(
    tiling: Tiling, operands: Operands, offset: Int[Array, ""]
) -> tuple[Float[Array, "B H T E"], Float[Array, "B H T"]]:
    """Each query's output, and the logarithm of the denominator of its softmax, both in float32."""

    def query_block(_: None, i: Array) -> tuple[None, tuple[Array, Array]]:
        query, queries = cut((operands.query, operands.queries), i * tiling.query_block, tiling.query_block)

        def visit(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            maximum, total, mixed = state
            start = j * tiling.key_block
            key, value, keys = cut((operands.key, operands.value, operands.keys), start, tiling.key_block)
            logits = tiling.adjust(operands.params, scores(query, key), queries, keys)
            if tiling.normalizer == "sigmoid":
                return maximum, total, mixed + mix(jax.nn.sigmoid(logits), value)
            top = jnp.maximum(maximum, logits.max(axis=-1))
            weights, shrink = jnp.exp(logits - top[..., None]), jnp.exp(maximum - top)
            return top, total * shrink + weights.sum(axis=-1), mixed * shrink[..., None] + mix(weights, value)

        mixed = jnp.zeros((*query.shape[:3], operands.value.shape[3]))
        state = (*start_of(operands.sinks, query.shape), mixed)
        maximum, total, mixed = lax.fori_loop(*tiling.visible(i, offset), visit, state)
        out = mixed if tiling.normalizer == "sigmoid" else mixed / nonzero(total)[..., None]
        return None, (out, maximum + jnp.log(nonzero(total)))

    out, log_sums = lax.scan(query_block, None, jnp.arange(operands.query.shape[2] // tiling.query_block))[1]
    return joined(out, axis=2), joined(log_sums, axis=2)


def merged(normalizer: str, sums: tuple[Array, Array], found: tuple[Array, Array]) -> tuple[Array, Array]:
    """Outputs, and logarithms of denominators (B, H, T, 1), over two sets of keys."""
    (out, log_sums), (new, new_sums) = sums, found
    if normalizer == "sigmoid":
        return out + new, log_sums
    whole = jnp.logaddexp(log_sums, new_sums)
    return out * jnp.exp(log_sums - whole) + new * jnp.exp(new_sums - whole), whole


def gradients_by_tiles(
    tiling: Tiling,
    operands: Operands,
    offset: Int[Array, ""],
    gradient: Float[Array, "B H T E"],
    products: Float[Array, "B H T 1"],
    log_sums: Float[Array, "B H T 1"],
) -> Operands:
    """The gradients of all floats of `operands` but the sinks, in float32, of the queries' output · its gradient and
    of the logarithm of their denominators. `grad_…` are sums over blocks, `d_…` the terms of one block.
    """
    query, key, value, queries, keys, params, _ = operands
    K = key.shape[1]
    rows = query, gradient, products, log_sums, queries

    def query_block(sums: Any, i: Array) -> tuple[Any, Any]:
        query, gradient, product, log_sum, queries = cut(rows, i * tiling.query_block, tiling.query_block)
        # Sums over queries contract the last axis, which a CPU does 1.5 × as fast.
        columns, gradient_columns = (_columns(x, K) for x in (query, gradient))

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
                _add(grad_queries, (mix(d_scores, key_block), d_queries)),
                add_at(grad_keys, d_key, j * tiling.key_block),
                _add(grad_params, d_params),
            )

        grad_keys, grad_params = sums
        start = zeros_of((query, queries)), grad_keys, grad_params
        grad_queries, grad_keys, grad_params = lax.fori_loop(*tiling.visible(i, offset), visit, start)
        return (grad_keys, grad_params), grad_queries

    start, blocks = zeros_of(((key.mT, value.mT, keys), params)), jnp.arange(query.shape[2] // tiling.query_block)
    ((grad_key, grad_value, grad_keys), grad_params), (grad_query, grad_queries) = lax.scan(query_block, start, blocks)
    grad_queries = jax.tree.map(lambda x: joined(x, axis=x.ndim - 2), grad_queries)
    return Operands(joined(grad_query, axis=2), grad_key.mT, grad_value.mT, grad_queries, grad_keys, grad_params, None)


def _mix_keys(columns: Float[Array, "B K N G t"], weights: Float[Array, "B H t s"]) -> Float[Array, "B K N s"]:
    """The transpose of `mix`: for each key, the weighted sum over queries of `columns`."""
    (B, H, T, S), K = weights.shape, columns.shape[1]
    grouped = weights.reshape(B, K, H // K, T, S)
    return jnp.einsum("bkdgt,bkgts->bkds", columns, grouped, preferred_element_type=jnp.float32)


def floats(tree: Any) -> Any:
    """The tree with None for every leaf that is not a float and so has no gradient."""
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else None, tree)


def _vjp(adjust: Adjust, *operands: Any) -> tuple[Array, Callable[[Array], Any]]:
    """The logits of `adjust`, and the function that pulls a gradient back to the floats among its operands."""

    def of_floats(given: Any) -> Array:
        whole = jax.tree.map(lambda x, y: y if x is None else x, given, operands, is_leaf=lambda x: x is None)
        return adjust(*whole)

    logits, pull_back = jax.vjp(of_floats, floats(operands))
    return logits, lambda gradient: pull_back(gradient)[0]


def zeros_of(tree: Any) -> Any:
    """Float32 zeros of the shape of each float leaf."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), floats(tree))


def _add(sums: Any, terms: Any) -> Any:
    return jax.tree.map(jnp.add, sums, terms)
