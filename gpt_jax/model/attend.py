"""Softmax attention itself: one entry, `attend`, and the plain einsum that every other way to compute it must equal.

Tensors stand heads first, (B, H, T, D). H/K neighbouring query heads share a key head: GQA (Ainslie et al. 2023,
arXiv:2305.13245), with K = 1 MQA (Shazeer 2019, arXiv:1911.02150).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg
from gpt_jax.config.errors import ConfigError
from gpt_jax.model import splash
from gpt_jax.model.bias import adds, position_bias
from gpt_jax.model.chunked import HIDDEN, chunked_attention, scores
from gpt_jax.model.mask import Side, allowed, reach, spans

LONG = 1024  # tokens from which on the einsum's T × S scores cost more than computing them twice (on a CPU)


@struct.dataclass
class Logits:
    """From scores q·k to logits: softcap, what position and forgetting add, and which keys are seen.

    `table` (buckets, H) is a T5 bias's, `padding` and `prefix` (B,) are the row's; each may be None. `shift` is added.
    """

    table: Any
    padding: Any
    prefix: Any
    mask: cfg.MaskConfig = struct.field(pytree_node=False)
    position: cfg.PositionConfig | None = struct.field(pytree_node=False)
    softcap: float | None = struct.field(pytree_node=False)
    shift: float = struct.field(pytree_node=False)

    def __call__(self, x: Float[Array, "B H T S"], queries: Side, keys: Side) -> Float[Array, "B H T S"]:
        if self.softcap is not None:
            x = self.softcap * jnp.tanh(x / self.softcap)
        bias = position_bias(self.position, self.table, queries.positions, keys.positions, x.shape[1])
        if bias is not None:
            x += bias
        if queries.decay is not None and keys.decay is not None:
            # Nothing lies between a query and the keys ahead of it that a prefix lets it see.
            x += jnp.minimum(queries.decay[:, :, :, None] - keys.decay[:, :, None, :], 0.0)
        if self.shift:
            x += self.shift
        return jnp.where(allowed(self.mask, queries, keys, self.padding, self.prefix)[:, None], x, HIDDEN)


def attend(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B K S D"],
    value: Float[Array, "B K S E"],
    queries: Side,
    keys: Side,
    logits: Logits,
    *,
    normalizer: str,
    sinks: Float[Array, " H"] | None,
    kernel: str | None,
    offset: Int[Array, ""] | int | None,
    drop: Callable[[Array], Array] | None,
    watch: Callable[[Array], Any] | None,
) -> Float[Array, "B H T E"]:
    """Each query's mean of the values it may see, weighted by its probabilities; `query` comes already scaled.

    `normalizer` is "softmax", whose denominator may have `sinks` too, or "sigmoid". `offset` is the step of query 0
    less that of key 0, None where the keys stand in no order (a ring). `drop` is dropout on the probabilities, `watch`
    is shown them: both need them whole, which only the einsum has.

    `kernel`, for whole rows: "einsum"; "chunked", in O(T) memory; "splash", Pallas' for TPUs. None, and always through
    a cache: the einsum for fewer than LONG tokens or with dropout, else chunked, or on a TPU splash where it can.

    Raises:
      ConfigError: the kernel that was asked for can't do this.
    """
    window = reach(logits.mask)

    def by_chunks() -> Array:
        return chunked_attention(
            query,
            key,
            value,
            queries,
            keys,
            _adjust,
            logits,
            sinks=sinks,
            normalizer=normalizer,
            offset=None if isinstance(logits.mask, cfg.Prefix) else offset,
            reach=window,
        )

    def by_splash() -> Array:
        return splash.splash_attention(
            query, key, value, segments=queries.segments, window=window, softcap=logits.softcap, sinks=sinks
        )

    match _choose(kernel, query.shape[2], key.shape[2], queries, logits, normalizer, drop):
        case "einsum":
            return einsum_attention(query, key, value, queries, keys, logits, normalizer, sinks, drop, watch)
        case "chunked":
            return by_chunks()
        case "splash":
            return by_splash()
    return jax.lax.platform_dependent(tpu=by_splash, default=by_chunks)


def _choose(kernel: str | None, T: int, S: int, queries: Side, logits: Logits, normalizer: str, drop: Any) -> str:
    """The name of the implementation, or "by platform"."""
    is_row = logits.padding is None
    is_biased = adds(logits.position) or queries.decay is not None
    no_splash = splash.why_not(T, S, logits.mask, normalizer, is_biased=is_biased, is_watched=drop is not None)
    if kernel is None or not is_row:
        if T < LONG or drop is not None:
            return "einsum"
        return "by platform" if is_row and no_splash is None else "chunked"
    if kernel == "splash" and no_splash is not None:
        raise ConfigError(f'model.kernel is "splash", which {no_splash}: choose "chunked" or "einsum", or leave it out')
    if kernel == "chunked" and drop is not None:
        raise ConfigError(
            'model.kernel is "chunked", which never has the probabilities whole, and attention.dropout acts on them: '
            'set it to 0, or choose "einsum"'
        )
    return kernel


def _adjust(logits: Logits, scores: Array, queries: Side, keys: Side) -> Array:
    return logits(scores, queries, keys)


def einsum_attention(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B K S D"],
    value: Float[Array, "B K S E"],
    queries: Side,
    keys: Side,
    logits: Logits,
    normalizer: str,
    sinks: Float[Array, " H"] | None,
    drop: Callable[[Array], Array] | None = None,
    watch: Callable[[Array], Any] | None = None,
) -> Float[Array, "B H T E"]:
    """The reference: scores of all keys at once; in a whole row, of one span of queries at a time with the part of the
    keys that it may see.
    """
    is_row = logits.padding is None
    parts = spans(logits.mask, query.shape[2]) if is_row else [(slice(None), slice(None))]
    mixed, probabilities = [], []
    for t, s in parts:
        dots = scores(query[:, :, t], key[:, :, s])
        p = normalize(logits(dots, queries.cut(t), keys.cut(s)), normalizer, sinks)
        mixed.append(mix((p if drop is None else drop(p)).astype(value.dtype), value[:, :, s]))
        probabilities.append(p)
    if watch is not None:
        watch(_side_by_side(probabilities, parts, key.shape[2]))
    return jnp.concatenate(mixed, axis=2)


def normalize(
    logits: Float[Array, "B H T S"], normalizer: str, sinks: Float[Array, " H"] | None
) -> Float[Array, "B H T S"]:
    """Probabilities (of a sigmoid: weights), in float32 and exactly 0 where a key is hidden (Vaswani et al. 2017)."""
    if normalizer == "sigmoid":
        return jax.nn.sigmoid(logits)
    if sinks is None:
        return jax.nn.softmax(logits, axis=-1)
    sink = sinks.astype(jnp.float32)[:, None, None]
    top = jax.lax.stop_gradient(jnp.maximum(logits.max(axis=-1, keepdims=True), sink))
    weights = jnp.exp(logits - top)
    return weights / (weights.sum(axis=-1, keepdims=True) + jnp.exp(sink - top))


def mix(probabilities: Float[Array, "B H T S"], value: Float[Array, "B K S E"]) -> Float[Array, "B H T E"]:
    """Each query's mean of the values, weighted by its probabilities."""
    (B, H, T, S), (_, K, _, E) = probabilities.shape, value.shape
    grouped = probabilities.reshape(B, K, (H // K) * T, S)
    return jnp.einsum("bkns,bksd->bknd", grouped, value).reshape(B, H, T, E)


def _side_by_side(rows: list[Array], parts: list[tuple[slice, slice]], size: int) -> Float[Array, "B H T S"]:
    """The probabilities of all spans, 0 for the keys that a span leaves out."""
    bounds = [keys.indices(size) for _, keys in parts]
    margins = [((0, 0), (0, 0), (0, 0), (start, size - stop)) for start, stop, _ in bounds]
    return jnp.concatenate([jnp.pad(p, margin) for p, margin in zip(rows, margins, strict=True)], axis=2)
