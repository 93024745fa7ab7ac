"""Linear attention: without a softmax, a state of constant size replaces the cache of keys and values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg
from gpt_jax.model.convolution import convolution_shapes
from gpt_jax.model.mixer import CacheShapes, Carry, zeros
from gpt_jax.model.placement import from_heads, to_heads
from gpt_jax.model.recurrence import CHUNK, Recurrent, decays, join_chunks, non_padding, split_chunks
from gpt_jax.model.rope import rotate
from gpt_jax.model.row import Row
from gpt_jax.model.slots import LayerCache, part, read, write
from gpt_jax.model.taps import tap

EPSILON = 1e-6  # added to the normalizer, as in the authors' code: with relu it may be 0

State = dict[str, Array]


def linear_attention(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B H T D"],
    value: Float[Array, "B H T E"],
    log_decay: Float[Array, "B H T"] | None = None,
    normalized: bool = False,
    segments: Int[Array, "B T"] | None = None,
    state: State | None = None,
    chunk: int = CHUNK,
) -> tuple[Float[Array, "B H T E"], State]:
    """S_t = exp(log_decay_t) S_{t−1} + k_t v_tᵀ, o_t = S_tᵀ q_t, in float32 (Katharopoulos et al. 2020,
    arXiv:2006.16236; with decay RetNet, arXiv:2307.08621).

    `normalized` divides o_t by z_tᵀ q_t with z_t = exp(log_decay_t) z_{t−1} + k_t. Returns the outputs o, and the state
    after the last token: S as "state" (B, H, D, E) and, if normalized, z as "normalizer" (B, H, D). `state` None means
    zeros. The initial state belongs to the document of the first token; where `segments` changes, the state restarts at
    zero. A token with k = 0 and log_decay = 0 leaves the state unchanged. T > 1 tokens are computed in chunks of at
    most `chunk`, a single token by the recurrence.
    """
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    (B, H, T, D), E = query.shape, value.shape[-1]
    start = {"state": zeros((B, H, D, E), jnp.float32)}
    start |= {"normalizer": zeros((B, H, D), jnp.float32)} if normalized else {}
    now = start if state is None else state

    if T == 1:
        left = jnp.ones((B, H)) if log_decay is None else jnp.exp(log_decay[..., 0].astype(jnp.float32))
        now = _advance(now, left, _written(key, value, normalized))
        out = jnp.einsum("bhtd,bhde->bhte", query, now["state"])
        return _divided(out, query, now, 0.0) if normalized else out, now

    query, key, value = (to_heads(x) for x in (query, key, value))
    decay = decays(log_decay, segments, T, chunk)
    query, key, value = (split_chunks(x, chunk) for x in (query, key, value))
    written = _written(key * decay.within[..., -1, :, None], value, normalized)
    across = jnp.broadcast_to(decay.before[..., -1], query.shape[:3])

    def step(state: State, chunk: tuple[Array, State]) -> tuple[State, State]:
        return _advance(state, *chunk), state

    now, before = jax.lax.scan(step, now, (across, written))
    weights = jnp.einsum("nbhtd,nbhsd->nbhts", query, key) * decay.within
    query *= decay.before[..., None]
    out = jnp.einsum("nbhts,nbhse->nbhte", weights, value) + jnp.einsum("nbhtd,nbhde->nbhte", query, before["state"])
    out = _divided(out, query, before, weights.sum(-1)) if normalized else out
    return from_heads(join_chunks(out, T)), now


def _written(key: Float[Array, "*N T D"], value: Float[Array, "*N T E"], normalized: bool) -> State:
    """The sum of the terms that T tokens add to the state, k vᵀ and k."""
    added = {"state": jnp.einsum("...td,...te->...de", key, value)}
    return added | ({"normalizer": key.sum(-2)} if normalized else {})


def _advance(state: State, left: Float[Array, "B H"], written: State) -> State:
    """left · state + written, for each head."""
    return jax.tree.map(lambda old, new: left.reshape(*left.shape, *(1,) * (old.ndim - 2)) * old + new, state, written)


def _divided(out: Float[Array, "*N T E"], query: Float[Array, "*N T D"], state: State, own: Array | float) -> Array:
    """`out` divided by the sum of its weights: `own`, those within the chunk, plus those of earlier tokens, z · q."""
    total = own + jnp.einsum("...td,...d->...t", query, state["normalizer"])
    return out / (total[..., None] + EPSILON)


def feature_map(name: str | None, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The feature map f, applied to queries and keys; None is the identity."""
    match name:
        case "elu":  # elu(x) + 1, which would round to 0 for x far below 0
            return jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0)))
        case "relu":
            return jax.nn.relu(x)
        case "silu":
            return jax.nn.silu(x)
        case _:
            return x


class LinearAttention(Recurrent):
    """Linear attention: x (B, T, C) → queries, keys (B, T, H, D), values (B, T, H, E) → (B, T, H · E) → (B, T, C)."""

    config: cfg.LinearAttention

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T C"], row: Row, cache: LayerCache | None, shared: Carry, train: bool
    ) -> tuple[Float[Array, "B T C"], LayerCache | None, Carry]:
        c, C = self.config, x.shape[-1]
        H, D, E = c.heads, c.resolved_head_width(C), c.resolved_value_width(C)
        query, cache = self.project(x, "query", H, D, row, cache)
        key, cache = self.project(x, "key", H, D, row, cache)
        value, cache = self.project(x, "value", H, E, row, cache)
        query, key = (feature_map(c.feature_map, y.astype(jnp.float32)) for y in (query, key))
        if (kept := non_padding(row)) is not None:
            key = jnp.where(kept[..., None, None], key, 0)
        query, key, value = tap(self, "queries", query), tap(self, "keys", key), tap(self, "values", value)
        out, state = self._mix(query, key, value, self.log_decay(x), row, cache)
        state["state"] = tap(self, "state", state["state"], heads_first=True)
        return self.finish(x, out), write(cache, **state), shared

    def _mix(
        self,
        query: Float[Array, "B T H D"],
        key: Float[Array, "B T H D"],
        value: Float[Array, "B T H E"],
        log_decay: Float[Array, "B H T"] | None,
        row: Row,
        cache: LayerCache | None,
    ) -> tuple[Float[Array, "B H T E"], State]:
        """Each head's output, before the output projection, and its state after the last token."""
        c, rope = self.config, self.config.position

        def attend(query: Array, key: Array, value: Array, past: State | None, normalized: bool) -> tuple[Array, State]:
            query, key, value = (y.swapaxes(1, 2) for y in (query, key, value))
            return linear_attention(query, key, value, log_decay, normalized, row.segments, past)

        def rotated(y: Array) -> Array:
            return rotate(y, row.positions, rope, row.context) if isinstance(rope, cfg.Rope) else y

        scale = 1.0 if c.normalize else query.shape[-1] ** -0.5
        together = c.normalize and rope is None
        names = ("state", "normalizer") if together else ("state",)
        out, state = attend(rotated(query) * scale, rotated(key), value, part(cache, *names), together)
        if c.normalize and not together:
            # Rotated scores may be negative, so the normalizer sums the unrotated ones (RoFormer, eq. 19).
            sums = read(cache, "normalizer")
            past = None if sums is None else {"state": sums[..., None]}
            total, summed = attend(query, key, jnp.ones_like(value[..., :1]), past, False)
            out, state["normalizer"] = out / (total + EPSILON), summed["state"][..., 0]
        return out, state

    @staticmethod
    def cache_shapes(config: cfg.LinearAttention, model: cfg.ModelConfig, length: int) -> CacheShapes:
        """The float32 state and the convolutions' last inputs; independent of `length`."""
        H, D, E = config.heads, config.resolved_head_width(model.width), config.resolved_value_width(model.width)
        shapes = convolution_shapes(config.convolution, model.dtype, query=H * D, key=H * D, value=H * E)
        shapes["state"] = jax.ShapeDtypeStruct((H, D, E), jnp.float32)
        if config.normalize:
            shapes["normalizer"] = jax.ShapeDtypeStruct((H, D), jnp.float32)
        return shapes

    @staticmethod
    def mixing_flops(config: cfg.LinearAttention, model: cfg.ModelConfig, context: int) -> int:
        """Floating-point operations per token in chunks of c tokens. Per head: 2c(D + E) for the scores and weighted
        values within the chunk, 2DE each for the state's update and its product with the query. Decoding one token
        costs the last two alone.
        """
        D, E, c = config.resolved_head_width(model.width), config.resolved_value_width(model.width), min(CHUNK, context)
        return config.heads * (2 * c * (D + E) + 4 * D * E)
