"""Where the keys and values of a layer come from, and what is added to its values. A kind is one row of a table.

A function of `VALUES` takes the layer (a `MultiHeadAttention`, for its `project` and `place`), its input x (B, T, C),
the side of the T tokens, the row, the cache and what the layers below have left. It returns keys (B, K, S, D), values
(B, K, S, E) and the side of the S tokens that they belong to, then the cache and what the layers above get.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax import config as cfg
from gpt_jax.config.variant import implementation
from gpt_jax.model.mask import Side
from gpt_jax.model.mixer import Carry
from gpt_jax.model.parameter import Parameter
from gpt_jax.model.row import Row
from gpt_jax.model.slots import LayerCache, extend
from gpt_jax.model.taps import tap

KeysAndValues = tuple[Float[Array, "B K S D"], Float[Array, "B K S E"], Side]
Made = tuple[KeysAndValues, LayerCache | None, Carry]


def _projected(
    layer: Any, x: Float[Array, "B T C"], queries: Side, row: Row, cache: LayerCache | None, shared: Carry
) -> Made:
    c, C = layer.config, x.shape[-1]
    K, D, E = c.resolved_kv_heads, c.resolved_head_width(C), c.resolved_value_width(C)
    key, cache = layer.project("key", x, K, D, row, cache)
    key = tap(layer, "keys", layer.place("key", key, row.positions, row.context))
    value, cache = layer.project("value", x, K, E, row, cache)
    if c.value.embedding is not None:
        value = implementation(EMBEDDINGS, c.value.embedding)(c.value.embedding, layer.model, value, row)
    if c.value.residual is not None:
        value, shared = implementation(RESIDUALS, c.value.residual)(c.value.residual, layer.model, value, row, shared)
    value = tap(layer, "values", value)
    new = {"key": key.swapaxes(1, 2), "value": value.swapaxes(1, 2)}
    cache, seen, keys = extend(cache, new, queries, row, c.mask)
    return (seen["key"], seen["value"], keys), cache, shared


def _from_key(
    layer: Any, x: Float[Array, "B T C"], queries: Side, row: Row, cache: LayerCache | None, shared: Carry
) -> Made:
    """Norm and rotation come after the cache, whose slots hold what both are made of."""
    c = layer.config
    key, cache = layer.project("key", x, c.resolved_kv_heads, c.resolved_head_width(x.shape[-1]), row, cache)
    cache, seen, keys = extend(cache, {"key": key.swapaxes(1, 2)}, queries, row, c.mask)
    value = tap(layer, "values", seen["key"].swapaxes(1, 2)).swapaxes(1, 2)
    key = tap(layer, "keys", layer.place("key", seen["key"].swapaxes(1, 2), keys.positions, row.context)).swapaxes(1, 2)
    return (key, value, keys), cache, shared


def _shared(
    layer: Any, x: Float[Array, "B T C"], queries: Side, row: Row, cache: LayerCache | None, shared: Carry
) -> Made:
    return shared["key_and_value"], cache, shared


def _embedding(
    c: cfg.ValueEmbedding, model: cfg.ModelConfig, value: Float[Array, "B T K E"], row: Row
) -> Float[Array, "B T K E"]:
    """`value` plus the vectors of the tokens."""
    initial = nn.initializers.normal(model.init.embedding_std)
    assert model.vocab_size is not None
    shape = (model.vocab_size, math.prod(value.shape[2:]))
    table = Parameter("table", initial, shape, model.param_dtype, name="value_embedding")()
    return value + jnp.take(table, row.tokens, axis=0).reshape(value.shape).astype(value.dtype)


def _residual(
    c: cfg.ValueResidual, model: cfg.ModelConfig, value: Float[Array, "B T K E"], row: Row, shared: Carry
) -> tuple[Float[Array, "B T K E"], Carry]:
    """`value` mixed with the first layer's values, which the first layer leaves to those above."""
    initial = nn.initializers.constant(c.initial)
    share = Parameter("share", initial, (), model.param_dtype, name="value_residual")().astype(value.dtype)
    first = value
    if "value" in shared:
        first = jnp.where(row.layer == cfg.value_source(model.attentions), value, shared["value"])
    return value + share * (first - value), {**shared, "value": first}


VALUES: dict[type[cfg.ValueConfig], Callable[..., Made]] = {
    cfg.Projected: _projected,
    cfg.FromKey: _from_key,
    cfg.Shared: _shared,
}
EMBEDDINGS: dict[type[cfg.ValueEmbeddingConfig], Callable[..., Float[Array, "B T K E"]]] = {
    cfg.ValueEmbedding: _embedding,
}
RESIDUALS: dict[type[cfg.ValueResidualConfig], Callable[..., tuple[Float[Array, "B T K E"], Carry]]] = {
    cfg.ValueResidual: _residual,
}
