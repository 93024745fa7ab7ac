"""Softmax attention itself: `einsum_attention` is the reference that every other way to compute it must equal, and
`attend` chooses among them.

Tensors are heads first, (B, H, T, D). G = H/K neighbouring query heads share a key head: GQA (Ainslie et al. 2023,
arXiv:2305.13245), with K = 1 MQA (Shazeer 2019, arXiv:1911.02150).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg
from gpt_jax.config.errors import ConfigError, UserError
from gpt_jax.model import splash
from gpt_jax.model.bias import adds, position_bias
from gpt_jax.model.blocked import HIDDEN
from gpt_jax.model.chunked import chunked_attention
from gpt_jax.model.mask import Side, allowed, reach, spans
from gpt_jax.model.placement import divides_positions
from gpt_jax.model.ring import ring_attention

LONG = 1024  # from this many tokens, storing T × S scores costs more than recomputing them (measured on a CPU)


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
) -> Float[Array, "B H T E"]:
    """softmax(q·k) v over the keys that a query may see (Vaswani et al. 2017, arXiv:1706.03762), arguments as `attend`.

    A whole row is cut into spans of queries, each with the keys that any of its queries may see.
    """
    is_row = logits.padding is None
    parts = spans(logits.mask, query.shape[2]) if is_row else [(slice(None), slice(None))]
    outputs = []
    for t, s in parts:
        score = scores(query[:, :, t], key[:, :, s])
        logit = logits(score, queries.cut(t), keys.cut(s))  # HIDDEN where the query may not see the key
        p = normalize(logit, normalizer, sinks)  # softmax, in float32
        outputs.append(mean_values(p if drop is None else drop(p), value[:, :, s]))
    return jnp.concatenate(outputs, axis=2)


def scores(query: Float[Array, "B H T D"], key: Float[Array, "B K S D"]) -> Float[Array, "B H T S"]:
    """q·k, in float32."""
    (B, H, T, D), K = query.shape, key.shape[1]
    grouped = query.reshape(B, K, H // K * T, D)  # the heads that share a key head, as rows of one matrix
    return jnp.einsum("bknd,bksd->bkns", grouped, key, preferred_element_type=jnp.float32).reshape(B, H, T, -1)


def mean_values(weights: Float[Array, "B H T S"], value: Float[Array, "B K S E"]) -> Float[Array, "B H T E"]:
    """The sum of the values, weighted."""
    (B, H, T, _), (_, K, _, E) = weights.shape, value.shape
    grouped = weights.astype(value.dtype).reshape(B, K, H // K * T, -1)
    return jnp.einsum("bkns,bksd->bknd", grouped, value).reshape(B, H, T, E)


def tapped_attention(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B K S D"],
    value: Float[Array, "B K S E"],
    queries: Side,
    keys: Side,
    logits: Logits,
    normalizer: str,
    sinks: Float[Array, " H"] | None,
    drop: Callable[[Array], Array] | None,
    tap: Tap,
) -> Float[Array, "B H T E"]:
    """`einsum_attention`, whose scores, logits and probabilities (B, H, T, S) pass `tap`."""
    logit = tap("logits", logits(tap("scores", scores(query, key)), queries, keys))
    p = tap("probabilities", normalize(logit, normalizer, sinks))
    if not tap.edits:  # reading them must not change a bit of the output
        return einsum_attention(query, key, value, queries, keys, logits, normalizer, sinks, drop)
    return mean_values(p if drop is None else drop(p), value)


class Tap(NamedTuple):
    """Reads, and with `edits` changes, the values that attention goes through."""

    visit: Callable[[str, Array], Array]
    edits: bool

    def __call__(self, name: str, value: Array) -> Array:
        return self.visit(name, value)


@struct.dataclass
class Logits:
    """From scores q·k to logits: what softcap, position and forgetting change, and HIDDEN where a key is not seen.

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
        visible = allowed(self.mask, queries, keys, self.padding, self.prefix)[:, None]
        return jnp.where(visible, self.adjusted(x, queries, keys), HIDDEN)

    def adjusted(self, x: Float[Array, "B H T S"], queries: Side, keys: Side) -> Float[Array, "B H T S"]:
        """The logits of keys that are seen; `x` itself where nothing is configured."""
        if self.softcap is not None:
            x = self.softcap * jnp.tanh(x / self.softcap)
        bias = position_bias(self.position, self.table, queries.positions, keys.positions, x.shape[1])
        if bias is not None:
            x += bias
        if queries.decay is not None and keys.decay is not None:
            # Nothing is forgotten between a query and the later keys that a prefix lets it see.
            x += jnp.minimum(queries.decay[:, :, :, None] - keys.decay[:, :, None, :], 0.0)
        if self.shift:
            x += self.shift
        return x


def normalize(
    logits: Float[Array, "B H T S"], normalizer: str, sinks: Float[Array, " H"] | None
) -> Float[Array, "B H T S"]:
    """Probabilities (with "sigmoid": weights), in float32 and exactly 0 where a key is hidden."""
    if normalizer == "sigmoid":
        return jax.nn.sigmoid(logits)
    if sinks is None:
        return jax.nn.softmax(logits, axis=-1)
    sink = sinks.astype(jnp.float32)[:, None, None]
    top = jax.lax.stop_gradient(jnp.maximum(logits.max(axis=-1, keepdims=True), sink))
    weights = jnp.exp(logits - top)
    return weights / (weights.sum(axis=-1, keepdims=True) + jnp.exp(sink - top))


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
    tap: Tap | None,
) -> Float[Array, "B H T E"]:
    """Each query's mean of the values that it may see, weighted by its probabilities.

    Args:
      query: scaled already.
      queries, keys: where the T and the S tokens are.
      logits: what turns scores into logits.
      normalizer: "softmax", whose denominator may have `sinks` too, or "sigmoid".
      offset: the step of query 0 minus that of key 0; None where the keys are in no order (a ring).
      drop: dropout on the probabilities. Only the einsum has them as a whole.
      tap: reads or changes scores, logits and probabilities, which the einsum then computes, whatever `kernel` says.
      kernel: for whole rows "einsum", "chunked" (in O(T) memory) or "splash" (Pallas' for TPUs). None, and always
        through a cache: the einsum for fewer than LONG tokens or with dropout; otherwise chunked, or on a TPU splash
        where it can. On a mesh that divides positions, None and "chunked" are the ring of `ring.py`.

    Raises:
      ConfigError: the kernel that was asked for cannot compute this.
      UserError: `tap` on a mesh that divides positions, where no device has a whole row.
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

    if tap is not None:
        if divides_positions():
            raise UserError(
                "a mesh that divides positions computes no whole row of scores: capture or edit them without the axis"
                " sequence"
            )
        return tapped_attention(query, key, value, queries, keys, logits, normalizer, sinks, drop, tap)
    if divides_positions() and logits.padding is None:
        return _by_ring(query, key, value, queries, keys, logits, normalizer, sinks, kernel, drop)
    match _choose(kernel, query.shape[2], key.shape[2], queries, logits, normalizer, drop):
        case "einsum":
            return einsum_attention(query, key, value, queries, keys, logits, normalizer, sinks, drop)
        case "chunked":
            return by_chunks()
        case "splash":
            return by_splash()
    return jax.lax.platform_dependent(tpu=by_splash, default=by_chunks)


def _by_ring(
    query: Array,
    key: Array,
    value: Array,
    queries: Side,
    keys: Side,
    logits: Logits,
    normalizer: str,
    sinks: Array | None,
    kernel: str | None,
    drop: Any,
) -> Float[Array, "B H T E"]:
    """Attention of rows whose positions the mesh in context divides; arguments as `attend`."""
    cfg.check_ring(kernel, drop is not None)
    return ring_attention(
        query,
        key,
        value,
        queries,
        keys,
        _adjust,
        logits,
        sinks=sinks,
        normalizer=normalizer,
        reach=reach(logits.mask),
        is_causal=not isinstance(logits.mask, cfg.Prefix),
        knows_heads=adds(logits.position),
    )


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
            'model.kernel is "chunked", which never has all the probabilities at once, and attention.dropout acts on'
            ' them: set it to 0, or choose "einsum"'
        )
    return kernel


def _adjust(logits: Logits, scores: Array, queries: Side, keys: Side) -> Array:
    return logits(scores, queries, keys)
