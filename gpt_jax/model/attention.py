"""Causal self-attention: multi-head, multi-query, grouped-query, with or without a cache."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from gpt_jax import config as cfg
from gpt_jax.conversion import ConfigError
from gpt_jax.model.bias import position_bias
from gpt_jax.model.cache import LayerCache, extend, slots
from gpt_jax.model.convolution import ShortConvolution
from gpt_jax.model.linear import Linear
from gpt_jax.model.mask import allowed, spans
from gpt_jax.model.norm import make_norm
from gpt_jax.model.rope import rotate
from gpt_jax.model.row import Row
from gpt_jax.model.taps import is_tapped, tap


class Keys(NamedTuple):
    """Where the S keys at hand stand: step (negative: an empty slot of a cache) and position."""

    steps: Int[Array, " S"]
    positions: Int[Array, "b S"]


class MultiHeadAttention(nn.Module):
    """x (B, T, C) → queries (B, T, H, D), keys and values (B, T, K, D) → (B, T, H·D) → (B, T, C)."""

    config: cfg.Attention
    model: cfg.ModelConfig
    output_scale: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T C"], row: Row, cache: LayerCache | None, train: bool
    ) -> tuple[Float[Array, "B T C"], LayerCache | None]:
        c, model = self.config, self.model
        (B, T, C), H, K, D = x.shape, c.heads, c.resolved_kv_heads, c.resolved_head_width(x.shape[-1])
        std, dtype = model.init.kernel_std, model.param_dtype

        state: LayerCache = {}

        def project(name: str, heads: int) -> Float[Array, "B T N D"]:
            y = Linear(heads * D, c.bias, std, dtype, name=name)(x)
            if c.convolution is not None:
                past = None if cache is None else cache[f"{name}_convolution"]
                convolution = ShortConvolution(c.convolution, dtype, name=f"{name}_convolution")
                y, state[f"{name}_convolution"] = convolution(y, row, past)
            return y.reshape(B, T, heads, D)

        query, key, value = project("query", H), project("key", K), project("value", K)
        query = make_norm(c.score.qk_norm, dtype, name="query_norm")(query)
        key = make_norm(c.score.qk_norm, dtype, name="key_norm")(key)
        match c.position:
            case cfg.Rope():
                length = T if row.length is None else row.length
                query, key = (rotate(y, row.positions, c.position, length) for y in (query, key))
            case None | cfg.Alibi() | cfg.T5Bias():
                pass
            case other:
                raise ConfigError(f"attention knows no position {type(other).__name__}: teach it or choose another")
        query, key, value = tap(self, "queries", query), tap(self, "keys", key), tap(self, "values", value)

        query, key, value = (y.swapaxes(1, 2) for y in (query, key, value))  # heads first
        parts, keys = spans(c.mask, T), Keys(row.steps, row.positions)
        if cache is not None:
            assert row.length is not None and row.padding is not None
            is_ring = slots(c.mask, row.length) < row.length
            written, key, value, steps = extend(cache, key, value, row.steps[0], is_ring)
            cache = {**cache, **written, **state}
            parts, keys = [(slice(None), slice(None))], Keys(steps, steps[None, :] - row.padding[:, None])
        heads = tap(self, "heads", self._attend(query, key, value, row, keys, parts, train))
        out = heads.swapaxes(1, 2).reshape(B, T, H * D)
        return Linear(C, c.output_bias, std, dtype, self.output_scale, name="output")(out), cache

    def _attend(
        self,
        query: Float[Array, "B H T D"],
        key: Float[Array, "B K S D"],
        value: Float[Array, "B K S D"],
        row: Row,
        keys: Keys,
        parts: list[tuple[slice, slice]],
        train: bool,
    ) -> Float[Array, "B H T D"]:
        """Each head's output, one part of the queries at a time with the part of the keys that it may see."""
        c, dropout = self.config, nn.Dropout(self.config.dropout, name="dropout")
        mixed, probabilities, table = [], [], None
        if isinstance(c.position, cfg.T5Bias):
            init, shape = nn.initializers.normal(self.model.init.embedding_std), (c.position.buckets, c.heads)
            table = self.param("position_bias", init, shape, jnp.dtype(self.model.param_dtype))
        for t, s in parts:
            query_segments, key_segments = (None if row.segments is None else row.segments[:, i] for i in (t, s))
            mask = allowed(c.mask, row.steps[t], keys.steps[s], query_segments, key_segments, row.padding)
            bias = position_bias(c.position, table, row.positions[:, t], keys.positions[:, s], c.heads)
            p = attention_probabilities(query[:, :, t], key[:, :, s], mask, bias, c.score)
            mixed.append(mix(dropout(p, deterministic=not train).astype(value.dtype), value[:, :, s]))
            probabilities.append(p)
        if is_tapped(self):
            tap(self, "probabilities", _side_by_side(probabilities, parts, key.shape[2]))
        return jnp.concatenate(mixed, axis=2)


def _side_by_side(rows: list[Array], parts: list[tuple[slice, slice]], size: int) -> Float[Array, "B H T S"]:
    """The probabilities of all spans, 0 for the keys that a span leaves out."""
    bounds = [keys.indices(size) for _, keys in parts]
    margins = [((0, 0), (0, 0), (0, 0), (start, size - stop)) for start, stop, _ in bounds]
    return jnp.concatenate([jnp.pad(p, margin) for p, margin in zip(rows, margins, strict=True)], axis=2)


def attention_probabilities(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B K S D"],
    mask: Bool[Array, "#B T S"],
    bias: Float[Array, "#B H T S"] | None,
    score: cfg.Score,
) -> Float[Array, "B H T S"]:
    """softmax over S of scale · q·k (+ bias) where `mask` allows, exactly 0 elsewhere, in float32 (Vaswani 2017).

    H/K neighbouring query heads share a key head: GQA (Ainslie et al. 2023, arXiv:2305.13245), with K = 1 MQA (Shazeer
    2019, arXiv:1911.02150).
    """
    (B, H, T, D), (_, K, S, _) = query.shape, key.shape
    scale = D**-0.5 if score.scale is None else score.scale
    grouped = (query * jnp.asarray(scale, query.dtype)).reshape(B, K, (H // K) * T, D)
    scores = jnp.einsum("bknd,bksd->bkns", grouped, key, preferred_element_type=jnp.float32).reshape(B, H, T, S)
    if score.softcap is not None:
        scores = score.softcap * jnp.tanh(scores / score.softcap)
    if bias is not None:
        scores += bias
    # Finite: a row that may see nothing (a padding token's) stays finite, and nobody reads it.
    return jax.nn.softmax(jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min), axis=-1)


def mix(probabilities: Float[Array, "B H T S"], value: Float[Array, "B K S D"]) -> Float[Array, "B H T D"]:
    """Each query's mean of the values, weighted by its probabilities."""
    (B, H, T, S), (_, K, _, D) = probabilities.shape, value.shape
    grouped = probabilities.reshape(B, K, (H // K) * T, S)
    return jnp.einsum("bkns,bksd->bknd", grouped, value).reshape(B, H, T, D)
