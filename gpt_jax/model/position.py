"""Where a token stands: codes added to embeddings (learned, sinusoidal), rotations of queries and keys (RoPE), biases
of scores (ALiBi).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg


class LearnedPosition(nn.Module):
    """A table of vectors, one a position.

    A position beyond the table is the caller's to refuse (`check_inputs`): JAX would gather NaN.
    """

    length: int
    width: int
    std: float
    param_dtype: str

    @nn.compact
    def __call__(self, positions: Int[Array, "b T"]) -> Float[Array, "b T C"]:
        table = self.param(
            "table", nn.initializers.normal(self.std), (self.length, self.width), jnp.dtype(self.param_dtype)
        )
        return jnp.take(table, positions, axis=0)


def sinusoidal_position(positions: Int[Array, "b T"], width: int, theta: float) -> Float[Array, "b T C"]:
    """sin and cos of position · theta^(−2i/C), the sines first (Vaswani et al. 2017, as tensor2tensor lays them
    out).
    """
    angles = _angles(positions, width, theta)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotate(x: Float[Array, "B T N D"], positions: Int[Array, "b T"], rope: cfg.Rope) -> Float[Array, "B T N D"]:
    """Turns pair i of the first `fraction` of each head's width by position · theta^(−2i/width) radians, in float32."""
    width = cfg.rope_width(rope, x.shape[-1])
    angles = _angles(positions, width, rope.theta)[:, :, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    turned, rest = x[..., :width].astype(jnp.float32), x[..., width:]
    if rope.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    else:
        a, b = jnp.split(turned, 2, axis=-1)
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1) if rest.shape[-1] else turned.astype(x.dtype)


def _angles(positions: Int[Array, "b T"], width: int, theta: float) -> Float[Array, "b T pairs"]:
    frequencies = theta ** -(np.arange(0, width, 2, dtype=np.float32) / width)
    return positions[..., None].astype(jnp.float32) * frequencies


def alibi_slopes(heads: int) -> Float[np.ndarray, " H"]:
    """Geometric slopes 2^(−8h/H); where H is no power of two, those of the power below and then every other one of
    the power above.
    """
    below = 2 ** math.floor(math.log2(heads))
    slopes = 2.0 ** (-8.0 * np.arange(1, below + 1) / below)
    between = 2.0 ** (-4.0 * np.arange(1, 2 * (heads - below), 2) / below)
    return np.concatenate([slopes, between]).astype(np.float32)


def alibi_bias(
    query_positions: Int[Array, "b T"], key_positions: Int[Array, "b S"], heads: int
) -> Float[Array, "b H T S"]:
    """−slope · distance for each head, added to the scores."""
    distance = query_positions[:, None, :, None] - key_positions[:, None, None, :]
    return jnp.asarray(-alibi_slopes(heads)[:, None, None]) * distance.astype(jnp.float32)
