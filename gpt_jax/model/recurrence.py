"""What the mixers with a state have in common: a row cut into chunks, how much of a token is left at a later one, and
what stands around the recurrence.

Inside a chunk of c tokens all pairs meet at once, c² products a head that matrix units like; between chunks only the
state is handed on. So T tokens cost O(T · c) and not O(T²), whatever the chunk the outcome is the same, and one token
with a state is the recurrence itself.
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
from gpt_jax.model.row import Row
from gpt_jax.model.slots import LayerCache
from gpt_jax.model.taps import tap

CHUNK = 64  # tokens, at most


class Decays(NamedTuple):
    """What is left of an earlier token at a later one of its document, in (0, 1]; 0 for every other pair.

    `within`[t, s]: of token s at token t of the same chunk. `before`[t]: of the state before the chunk, at token t.
    """

    within: Float[Array, "#N #B #H c c"]
    before: Float[Array, "#N #B #H c"]


def cut(x: Float[Array, "B H T *D"], chunk: int) -> Float[Array, "N B H c *D"]:
    """The row as N chunks of like size, `chunk` at most, the last one filled up with zeros."""
    (B, H, T), rest = x.shape[:3], x.shape[3:]
    count = -(-T // chunk)
    size = -(-T // count)
    x = jnp.pad(x, [(0, 0), (0, 0), (0, count * size - T)] + [(0, 0)] * len(rest))
    return jnp.moveaxis(x.reshape(B, H, count, size, *rest), 2, 0)


def join(x: Float[Array, "N B H c E"], length: int) -> Float[Array, "B H T E"]:
    """Inverse of `cut`."""
    N, B, H, c, E = x.shape
    return jnp.moveaxis(x, 0, 2).reshape(B, H, N * c, E)[:, :, :length]


def decays(
    log_decay: Float[Array, "B H T"] | None, segments: Int[Array, "B T"] | None, length: int, chunk: int
) -> Decays:
    """The decays of `length` tokens in chunks; `log_decay` is what is left of the state at each of them, ≤ 0.

    The logarithms between two tokens are added up for each pair of them, as Mamba-2 does it: the difference of two sums
    from the chunk's beginning would lose its digits once a token between has forgotten nearly all.
    """
    size = -(-length // -(-length // chunk))
    causal = jnp.tril(jnp.ones((size, size), bool))
    if segments is None:
        seen, continues = causal[None, None, None], jnp.ones((1, 1, 1, size), bool)
    else:
        # A document is a run of like numbers. Filling up repeats the last one, so that it counts as its continuation.
        runs = jnp.cumsum(jnp.diff(segments, axis=1, prepend=segments[:, :1]) != 0, axis=1)
        count = -(-length // size)
        runs = jnp.pad(runs, ((0, 0), (0, count * size - length)), mode="edge")
        runs = jnp.moveaxis(runs.reshape(-1, count, size), 1, 0)[:, :, None]  # (N, B, 1, c)
        last = jnp.concatenate([runs[:1, ..., :1], runs[:-1, ..., -1:]])  # the state comes from the first document
        seen, continues = causal & (runs[..., :, None] == runs[..., None, :]), runs == last
    if log_decay is None:
        return Decays(seen.astype(jnp.float32), continues.astype(jnp.float32))
    logs = cut(log_decay.astype(jnp.float32), chunk)
    later = jnp.tril(jnp.ones((size, size), bool), -1)
    between = jnp.cumsum(jnp.where(later, logs[..., :, None], 0.0), axis=-2)
    return Decays(jnp.where(seen, jnp.exp(between), 0.0), jnp.where(continues, jnp.exp(jnp.cumsum(logs, axis=-1)), 0.0))


class LogDecay(nn.Module):
    """x (B, T, C) → −a · softplus(w·x + b) (B, T, H), in float32 (Mamba-2: Dao & Gu 2024, arXiv:2405.21060).

    At first, as there, a = exp(log_rate) is uniform in [1, 16] and softplus(b) log-uniform in [0.001, 0.1].
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
    """What stands around a recurrence: short convolutions before it; a norm, a gate and a product with a kernel after
    it.

    Configuration, parameters and cache have the same names in all that derive from it.
    """

    def project(
        self, x: Float[Array, "B T C"], name: str, heads: int, width: int, row: Row, cache: LayerCache | None
    ) -> tuple[Float[Array, "B T N D"], LayerCache | None]:
        """Queries, keys or values, and the cache with what their convolution will look back on."""
        y = self._linear(name, heads * width)(x)
        y, cache = convolved(name, y, self.config.convolution, self.model.param_dtype, row, cache)
        return y.reshape(*x.shape[:2], heads, width), cache

    def log_decay(self, x: Float[Array, "B T C"]) -> Float[Array, "B H T"] | None:
        """The logarithm of what is left of each head's state at each token; None: all of it."""
        (B, T, _), H = x.shape, self.config.heads
        match self.config.decay:
            case None:
                return None
            case "fixed":
                return jnp.broadcast_to(fixed_log_decay(H)[:, None], (B, H, T))
            case _:
                log_decay = LogDecay(H, self.model.init.kernel_std, self.model.param_dtype, name="decay")(x)
                return tap(self, "log_decay", log_decay.swapaxes(1, 2))

    def finish(self, x: Float[Array, "B T C"], heads: Float[Array, "B H T E"]) -> Float[Array, "B T C"]:
        """Each head's output after norm and gate, all through the last product."""
        c, (B, T, C) = self.config, x.shape
        out = tap(self, "heads", heads).swapaxes(1, 2)
        out = (
            make_norm(c.output_norm, self.model.param_dtype, name="output_norm")(out).astype(x.dtype).reshape(B, T, -1)
        )
        if c.gate is not None:
            out *= GATES[c.gate](self._linear("gate", out.shape[-1])(x))
        return self._linear("output", C, self.output_scale)(out)

    def _linear(self, name: str, features: int, size: float = 1.0) -> Linear:
        model, bias = self.model, name in self.config.bias
        return Linear(features, bias, model.init.kernel_std, model.param_dtype, size, name=name)


def real(row: Row) -> Bool[Array, "B T"] | None:
    """Mask of the tokens that are not left padding; None: all of them. Padding must not write to the state, and its
    decay is harmless because the state is still zero.
    """
    return None if row.padding is None else row.steps >= row.padding[:, None]
