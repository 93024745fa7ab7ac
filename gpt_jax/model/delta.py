"""The gated delta rule: a recurrent state that overwrites the value stored under a key, instead of a growing cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg
from gpt_jax.model.convolution import convolution_shapes
from gpt_jax.model.linear import Linear
from gpt_jax.model.mixer import CacheShapes, Carry, zeros
from gpt_jax.model.placement import from_heads, to_heads
from gpt_jax.model.recurrence import CHUNK, Recurrent, decays, join_chunks, non_padding, split_chunks
from gpt_jax.model.row import Row
from gpt_jax.model.slots import LayerCache, read, write
from gpt_jax.model.taps import tap

EPSILON = 1e-6  # added to |x|² before queries and keys are normalized, as in the authors' code


def gated_delta(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B H T D"],
    value: Float[Array, "B H T E"],
    log_decay: Float[Array, "B H T"] | None,
    beta: Float[Array, "B H T"],
    segments: Int[Array, "B T"] | None = None,
    state: Float[Array, "B H D E"] | None = None,
    chunk: int = CHUNK,
) -> tuple[Float[Array, "B H T E"], Float[Array, "B H D E"]]:
    """S_t = α_t (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ, o_t = S_tᵀ q_t with α = exp(log_decay), in float32 (Yang,
    Kautz and Hatamizadeh 2024, arXiv:2412.06464).

    Returns the outputs o, and the state S after the last token. `state` None means zeros. The initial state belongs to
    the document of the first token; where `segments` changes, the state restarts at zero. A token with β = 0 and
    log_decay = 0 leaves the state unchanged. T > 1 tokens are computed in chunks of at most `chunk`, a single token by
    the recurrence.
    """
    query, key, value, beta = (x.astype(jnp.float32) for x in (query, key, value, beta))
    (B, H, T, D), E = query.shape, value.shape[-1]
    now = zeros((B, H, D, E), jnp.float32) if state is None else state
    if T == 1:
        if log_decay is not None:
            now *= jnp.exp(log_decay.astype(jnp.float32))[..., None]
        now += key.swapaxes(-1, -2) * (beta[..., None] * (value - key @ now))
        return query @ now, now

    # Let a_ts be the decay from s to t. Unrolling gives S_t = a_t S_0 + Σ_{s≤t} a_ts k_s u_sᵀ, where
    # u_t = β_t (v_t − a_t S_0ᵀ k_t − Σ_{s<t} a_ts (k_s·k_t) u_s): a triangular system for all u of a chunk. Its
    # solution is linear in S_0, so all chunks are solved at once, for v and for k (the WY form of arXiv:2406.06484).
    query, key, value, beta = (to_heads(x) for x in (query, key, value, beta))
    decay = decays(log_decay, segments, T, chunk)
    query, key, value = (split_chunks(x, chunk) for x in (query, key, value))
    beta = split_chunks(beta, chunk)[..., None]
    system = beta * jnp.einsum("nbhtd,nbhsd->nbhts", key, key) * jnp.tril(decay.within, -1)
    right = beta * jnp.concatenate([value, key * decay.before[..., None]], axis=-1)
    solved = unit_inverse(system) @ right
    from_value, from_key = solved[..., :E], solved[..., E:]
    kept = key * decay.within[..., -1, :, None]
    across = jnp.broadcast_to(decay.before[..., -1], query.shape[:3])

    def step(state: Array, chunk: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        across, from_value, from_key, kept = chunk
        written = from_value - from_key @ state
        return across[..., None, None] * state + kept.swapaxes(-1, -2) @ written, (state, written)

    now, (before, written) = jax.lax.scan(step, now, (across, from_value, from_key, kept))
    weights = jnp.einsum("nbhtd,nbhsd->nbhts", query, key) * decay.within
    return from_heads(join_chunks(weights @ written + (query * decay.before[..., None]) @ before, T)), now


@jax.custom_jvp
def unit_inverse(x: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """(I + x)⁻¹ for strictly lower triangular x, by inverting diagonal blocks that double in size: the inverse of
    [A 0; C B] is [A⁻¹ 0; −B⁻¹ C A⁻¹ B⁻¹]. Its rounding error is that of forward substitution.

    `triangular_solve` would not use matrix units, and on a CPU (jax 0.10.2) its gradient stalled for minutes,
    with all threads waiting, on a row of 4,096 tokens.
    """
    batch, n = x.shape[:-2], x.shape[-1]
    size = 1 << (n - 1).bit_length()
    x = jnp.pad(x, [(0, 0)] * len(batch) + [(0, size - n)] * 2)
    inverse = jnp.ones((*batch, size, 1, 1), x.dtype)
    for b in (1 << i for i in range(size.bit_length() - 1)):
        pairs = size // (2 * b)
        blocks = x.reshape(*batch, pairs, 2, b, pairs, 2, b)[..., 1, :, :, 0, :]
        lower = jnp.moveaxis(jnp.diagonal(blocks, axis1=-4, axis2=-2), -1, -3)  # C of each pair
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        lower = -_precise(second, _precise(lower, first))
        above = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        inverse = jnp.concatenate([above, jnp.concatenate([lower, second], axis=-1)], axis=-2)
    return inverse[..., 0, :n, :n]


@unit_inverse.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverse = unit_inverse(*primals)
    return inverse, -_precise(inverse, _precise(tangents[0], inverse))


def _precise(a: Float[Array, "*batch i j"], b: Float[Array, "*batch j k"]) -> Float[Array, "*batch i k"]:
    """a @ b in full float32: matrix units would round to bfloat16, and in an inverse those errors accumulate."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def unit(x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    """x / √(|x|² + ε), in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + EPSILON)


class GatedDeltaNet(Recurrent):
    """Gated DeltaNet: x (B, T, C) → queries, keys (B, T, K, D), values (B, T, H, E) → (B, T, H · E) → (B, T, C)."""

    config: cfg.Delta

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T C"], row: Row, cache: LayerCache | None, shared: Carry, train: bool
    ) -> tuple[Float[Array, "B T C"], LayerCache | None, Carry]:
        c, C = self.config, x.shape[-1]
        H, K, D, E = c.heads, c.resolved_key_heads, c.resolved_head_width(C), c.resolved_value_width(C)
        query, cache = self.project(x, "query", K, D, row, cache)
        key, cache = self.project(x, "key", K, D, row, cache)
        value, cache = self.project(x, "value", H, E, row, cache)
        query, key, value = tap(self, "queries", unit(jax.nn.silu(query))), unit(jax.nn.silu(key)), jax.nn.silu(value)
        key, value = tap(self, "keys", key), tap(self, "values", value)
        beta = Linear(H, False, self.model.init.kernel_std, self.model.param_dtype, name="beta")(x)
        beta = tap(self, "betas", jax.nn.sigmoid(beta.astype(jnp.float32)) * (2 if c.negative else 1))
        if (kept := non_padding(row)) is not None:
            beta = jnp.where(kept[..., None], beta, 0)

        query, key = (jnp.repeat(y, H // K, axis=2).swapaxes(1, 2) for y in (query * D**-0.5, key))
        out, state = gated_delta(
            query,
            key,
            value.swapaxes(1, 2),
            self.log_decay(x),
            beta.swapaxes(1, 2),
            row.segments,
            read(cache, "state"),
        )
        return self.finish(x, out), write(cache, state=tap(self, "state", state, heads_first=True)), shared

    @staticmethod
    def cache_shapes(config: cfg.Delta, model: cfg.ModelConfig, length: int) -> CacheShapes:
        """The float32 state (H, D, E) and the convolutions' last inputs; independent of `length`."""
        H, D, E = config.heads, config.resolved_head_width(model.width), config.resolved_value_width(model.width)
        K = config.resolved_key_heads
        shapes = convolution_shapes(config.convolution, model.dtype, query=K * D, key=K * D, value=H * E)
        return shapes | {"state": jax.ShapeDtypeStruct((H, D, E), jnp.float32)}

    @staticmethod
    def mixing_flops(config: cfg.Delta, model: cfg.ModelConfig, context: int) -> int:
        """Floating-point operations per token in chunks of c tokens. Per head: c(6D + 4E) for keys · keys, queries ·
        keys, the written values, and the right-hand side of the triangular system; 2(c² − 1)/3 for its inverse; 6DE
        for the state's products with key and query, and its update. Decoding one token costs the last term alone.
        """
        D, E, c = config.resolved_head_width(model.width), config.resolved_value_width(model.width), min(CHUNK, context)
        return config.heads * (c * (6 * D + 4 * E) + 2 * (c * c - 1) // 3 + 6 * D * E)
