"""Rotary position embedding (RoPE: Su et al. 2021, arXiv:2104.09864), and the scalings that extend it to longer rows.

Each scaling is a function, entered in SCALINGS. Frequencies are computed with NumPy at tracing, so that they are
constants of the compiled program.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg
from gpt_jax.config.variant import implementation

Frequencies = Float[np.ndarray, " pairs"]  # radians per position


def rotate(
    x: Float[Array, "B T N D"], positions: Int[Array, "b T"], rope: cfg.Rope, length: int
) -> Float[Array, "B T N D"]:
    """Rotates each pair i of the first `fraction` of x's last axis by position · frequency i radians, in float32.

    Without scaling, frequency i is theta^(−2i/width). `length` is the declared length of a row (the capacity of the
    cache, or T), on which some scalings depend. The attention factor of a scaling multiplies the rotated elements.

    Raises:
      ConfigError: heads of this width cannot be rotated in this way.
    """
    width = cfg.rope_width(rope, x.shape[-1])
    frequencies, factor = rope_frequencies(rope, x.shape[-1], length)
    angles = rotation_angles(positions, frequencies)[:, :, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if factor != 1.0:
        cos, sin = cos * factor, sin * factor
    rotated, rest = x[..., :width].astype(jnp.float32), x[..., width:]
    if rope.interleaved:
        a, b = rotated[..., 0::2], rotated[..., 1::2]
        rotated = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(rotated.shape)
    else:
        a, b = jnp.split(rotated, 2, axis=-1)
        rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([rotated.astype(x.dtype), rest], axis=-1) if rest.shape[-1] else rotated.astype(x.dtype)


def rotation_angles(positions: Int[Array, "b T"], frequencies: Frequencies) -> Float[Array, "b T pairs"]:
    """The angle of each pair at each position: radians, in float32."""
    return positions[..., None].astype(jnp.float32) * frequencies


def plain_frequencies(width: int, theta: float) -> Frequencies:
    """theta^(−2i/width) for each pair i of `width` elements, computed in float32 as published models do."""
    return theta ** -(np.arange(0, width, 2, dtype=np.float32) / width)


def rope_frequencies(rope: cfg.Rope, head_width: int, length: int) -> tuple[Frequencies, float]:
    """The frequency of each rotated pair, and the attention factor, for rows of `length`.

    Raises:
      ConfigError: heads of this width cannot be rotated in this way.
    """
    rope.check(head_width)
    plain = plain_frequencies(cfg.rope_width(rope, head_width), rope.theta)
    if rope.scaling is None:
        return plain, 1.0
    scaled, factor = implementation(SCALINGS, rope.scaling)(rope.scaling, plain.astype(np.float64), rope.theta, length)
    return scaled.astype(np.float32), factor


def _linear(c: cfg.LinearScaling, plain: Frequencies, theta: float, length: int) -> tuple[Frequencies, float]:
    return plain / c.factor, 1.0


def _dynamic_ntk(c: cfg.DynamicNtk, plain: Frequencies, theta: float, length: int) -> tuple[Frequencies, float]:
    """Raises theta so that (with factor 1) the slowest pair turns as far in `length` as it did in `original_length`."""
    width = 2 * len(plain)
    stretch = c.factor * max(length, c.original_length) / c.original_length - (c.factor - 1)
    return plain_frequencies(width, theta * stretch ** (width / (width - 2))), 1.0


def _yarn(c: cfg.Yarn, plain: Frequencies, theta: float, length: int) -> tuple[Frequencies, float]:
    """YaRN (Peng et al. 2023, section 3.2), with a ramp that is linear in the index of the pair instead of its number
    of turns, as published models have it.
    """
    width = 2 * len(plain)

    def pair(turns: float) -> float:
        """The (fractional) index of the pair that makes so many turns in `original_length`."""
        return width * math.log(c.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(c.beta_fast), pair(c.beta_slow)
    if c.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    ramp = np.clip((np.arange(width // 2) - first) / ((last - first) or 0.001), 0, 1)

    def temperature(weight: float) -> float:
        return 1 + 0.1 * weight * math.log(c.factor)

    if c.attention_factor is not None:
        factor = c.attention_factor
    elif c.mscale is not None and c.mscale_all_dim is not None:
        factor = temperature(c.mscale) / temperature(c.mscale_all_dim)
    else:
        factor = temperature(1.0)
    return plain * (1 - ramp) + plain / c.factor * ramp, factor


def _llama3(c: cfg.Llama3Scaling, plain: Frequencies, theta: float, length: int) -> tuple[Frequencies, float]:
    turns = plain * c.original_length / (2 * math.pi)  # of each pair, within the length of pretraining
    kept = np.clip((turns - c.low) / (c.high - c.low), 0, 1)
    return plain * kept + plain / c.factor * (1 - kept), 1.0


def _long_rope(c: cfg.LongRope, plain: Frequencies, theta: float, length: int) -> tuple[Frequencies, float]:
    scaled = plain / np.asarray(c.short if length <= c.original_length else c.long)
    if c.attention_factor is not None:
        return scaled, c.attention_factor
    assert c.factor is not None
    return scaled, math.sqrt(1 + math.log(c.factor) / math.log(c.original_length))


# (scaling, unscaled frequencies, theta, declared length) → (frequencies, attention factor)
SCALINGS: dict[type[cfg.RopeScaling], Callable[[Any, Frequencies, float, int], tuple[Frequencies, float]]] = {
    cfg.LinearScaling: _linear,
    cfg.DynamicNtk: _dynamic_ntk,
    cfg.Yarn: _yarn,
    cfg.Llama3Scaling: _llama3,
    cfg.LongRope: _long_rope,
}
