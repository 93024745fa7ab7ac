"""What the recurrent mixers share: chunks, decays, and the layers around the recurrence.

Within a chunk of c tokens, all pairs of tokens are computed at once, as c × c matrix products per head; from one chunk
to the next, only the state is passed. T tokens therefore cost O(T · c) instead of O(T²). The result does not depend on
c, and a single token with a state is one step of the recurrence.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from gpt_jax.model.convolution import convolved
from gpt_jax.model.linear import Linear
from gpt_jax.model.mixer import Mixer
from gpt_jax.model.norm import make_norm
from gpt_jax.model.placement import to_heads, whole_rows
from gpt_jax.model.row import Row
from gpt_jax.model.slots import LayerCache
from gpt_jax.model.taps import tap

CHUNK = 64  # most tokens of a chunk


class Decays(NamedTuple):
    """The product of the decays between two tokens of a document, in (0, 1]; 0 for every other pair.

    `within[t, s]` is the factor by which token s has decayed at token t of the same chunk, `before[t]` that of the
    state at the beginning of the chunk.
    """

    within: Float[Array, "#N #B #H c c"]
    before: Float[Array, "#N #B #H c"]


def split_chunks(x: Float[Array, "B H T *D"], chunk: int) -> Float[Array, "N B H c *D"]:
    """Splits T tokens into N chunks of equal size c ≤ `chunk`; the last one is padded with zeros."""
    (B, H, T), rest = x.shape[:3], x.shape[3:]
    count = -(-T // chunk)
    size = -(-T // count)
    x = jnp.pad(x, [(0, 0), (0, 0), (0, count * size - T)] + [(0, 0)] * len(rest))
    return jnp.moveaxis(x.reshape(B, H, count, size, *rest), 2, 0)


def join_chunks(x: Float[Array, "N B H c E"], length: int) -> Float[Array, "B H T E"]:
    """Inverse of `split_chunks`; `length` is T."""
    N, B, H, c, E = x.shape
    return jnp.moveaxis(x, 0, 2).reshape(B, H, N * c, E)[:, :, :length]


def decays(
    log_decay: Float[Array, "B H T"] | None, segments: Int[Array, "B T"] | None, length: int, chunk: int
) -> Decays:
    """The decays of `length` tokens in chunks. `log_decay` ≤ 0 is the logarithm of each token's decay; None means 0.

    The logarithms are summed separately for each pair of tokens, as in Mamba-2. The difference of two sums from the
    beginning of the chunk would cancel catastrophically after a token that forgets nearly everything.
    """
    if log_decay is not None:
        log_decay = to_heads(log_decay)
    size = -(-length // -(-length // chunk))
    causal = jnp.tril(jnp.ones((size, size), bool))
    if segments is None:
        seen, continues = causal[None, None, None], jnp.ones((1, 1, 1, size), bool)
    else:
        # A document is a run of equal numbers. Padding repeats the last number, which continues the last document.
        segments = whole_rows(segments)
        runs = jnp.cumsum(jnp.diff(segments, axis=1, prepend=segments[:, :1]) != 0, axis=1)
        count = -(-length // size)
        runs = jnp.pad(runs, ((0, 0), (0, count * size - length)), mode="edge")
        runs = jnp.moveaxis(runs.reshape(-1, count, size), 1, 0)[:, :, None]  # (N, B, 1, c)
        last = jnp.concatenate([runs[:1, ..., :1], runs[:-1, ..., -1:]])  # the first chunk's state: the first document
        seen, continues = causal & (runs[..., :, None] == runs[..., None, :]), runs == last
    if log_decay is None:
        return Decays(seen.astype(jnp.float32), continues.astype(jnp.float32))
    logs = split_chunks(log_decay.astype(jnp.float32), chunk)
    later = jnp.tril(jnp.ones((size, size), bool), -1)
    between = jnp.cumsum(jnp.where(later, logs[..., :, None], 0.0), axis=-2)
    return Decays(jnp.where(seen, jnp.exp(between), 0.0), jnp.where(continues, jnp.exp(jnp.cumsum(logs, axis=-1)), 0.0))


class LogDecay(nn.Module):
    """x (B, T, C) → −a · softplus(w·x + b) (B, T, H), in float32 (Mamba-2: Dao & Gu 2024, arXiv:2405.21060).

    At initialization, as in Mamba-2, a = exp(log_rate) is uniform in [1, 16] and softplus(b) log-uniform in
    [0.001, 0.1].
    """

    heads: int
    std: float | None
    param_dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T H"]:
        dtype = jnp.dtype(self.param_dtype)
        rate = self.param("log_rate", _log_rates, (self.heads,), dtype)
        steps = Linear(self.heads, False, self.std, self.param_dtype, name="step")(x).astype(jnp.float32)
        steps += self.param("bias", _step_biases, (self.heads,), dtype)
        return -jnp.exp(rate.astype(jnp.float32)) * jax.nn.softplus(steps)


def _log_rates(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return jnp.log(jax.random.uniform(key, shape, minval=1.0, maxval=16.0)).astype(dtype)


def _step_biases(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    steps = jnp.exp(jax.random.uniform(key, shape, minval=np.log(0.001), maxval=np.log(0.1)))
    return jnp.log(jnp.expm1(steps)).astype(dtype)  # softplus of this is `steps`


def fixed_log_decay(heads: int) -> Float[np.ndarray, " H"]:
    """log(1 − 2^(−5−h)): head h remembers about 2^(5+h) tokens (RetNet: Sun et al. 2023, arXiv:2307.08621)."""
    return np.log1p(-(2.0 ** (-5.0 - np.arange(heads)))).astype(np.float32)


GATES = {"silu": jax.nn.silu, "sigmoid": jax.nn.sigmoid}


class Recurrent(Mixer):
    """Base of the recurrent mixers: projections with short convolutions before the recurrence; a norm, a gate and the
    output projection after it.

    Configuration fields, parameters and cache entries have the same names in every subclass.
    """

    def project(
        self, x: Float[Array, "B T C"], name: str, heads: int, width: int, row: Row, cache: LayerCache | None
    ) -> tuple[Float[Array, "B T N D"], LayerCache | None]:
        """Queries, keys or values of N heads, and the cache extended by the last inputs of their convolution."""
        y = self._linear(name, heads * width)(x)
        y, cache = convolved(name, y, self.config.convolution, self.model.param_dtype, row, cache)
        return y.reshape(*x.shape[:2], heads, width), cache

    def log_decay(self, x: Float[Array, "B T C"]) -> Float[Array, "B H T"] | None:
        """The logarithm of each head's decay at each token; None means no decay."""
        (B, T, _), H = x.shape, self.config.heads
        match self.config.decay:
            case None:
                return None
            case "fixed":
                return jnp.broadcast_to(fixed_log_decay(H)[:, None], (B, H, T))
            case _:
                log_decay = LogDecay(H, self.model.init.kernel_std, self.model.param_dtype, name="decay")(x)
                return tap(self, "log_decay", log_decay.swapaxes(1, 2), heads_first=True)

    def finish(self, x: Float[Array, "B T C"], heads: Float[Array, "B H T E"]) -> Float[Array, "B T C"]:
        """Applies norm, gate and output projection to the heads' outputs."""
        c, C = self.config, x.shape[-1]
        out = tap(self, "heads", heads, heads_first=True).swapaxes(1, 2)
        out = make_norm(c.output_norm, self.model.param_dtype, name="output_norm")(out).astype(x.dtype)
        if c.gate is not None:
            gate = GATES[c.gate](self._linear("gate", out.shape[2] * out.shape[3])(x))
            out *= tap(self, "gate", gate.reshape(out.shape))
        return self._linear("output", C, self.output_scale, heads=True)(out)

    def _linear(self, name: str, features: int, size: float = 1.0, heads: bool = False) -> Linear:
        model, bias = self.model, name in self.config.bias
        return Linear(features, bias, model.init.kernel_std, model.param_dtype, size, heads, name=name)


def non_padding(row: Row) -> Bool[Array, "B T"] | None:
    """Mask of non-padding tokens; None if there is no padding. Padding must not write to the state; its decay is
    harmless because the state is still zero.
    """
    return None if row.padding is None else row.steps >= row.padding[:, None]
