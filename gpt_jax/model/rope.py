"""Rotations of queries and keys by an angle that grows with the position (RoPE), and what stretches it to longer rows.

A scaling is a function of one row in SCALINGS. Frequencies are constants of the program: nothing of them is computed in
a step.
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
    """Turns pair i of the first `fraction` of each head's width by position · frequency i radians, in float32.

    Without scaling frequency i is theta^(−2i/width). `length` is the declared length of a row, what scalings that
    depend on one go by: a cache's capacity, or T. A scaling's attention factor multiplies what is turned.
    """
    width = cfg.rope_width(rope, x.shape[-1])
    frequencies, factor = rope_frequencies(rope, x.shape[-1], length)
    angles = turns(positions, frequencies)[:, :, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if factor != 1.0:
        cos, sin = cos * factor, sin * factor
    turned, rest = x[..., :width].astype(jnp.float32), x[..., width:]
    if rope.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    else:
        a, b = jnp.split(turned, 2, axis=-1)
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1) if rest.shape[-1] else turned.astype(x.dtype)


def turns(positions: Int[Array, "b T"], frequencies: Frequencies) -> Float[Array, "b T pairs"]:
    """The angle of each pair at each position, in radians and float32."""
    return positions[..., None].astype(jnp.float32) * frequencies


def plain_frequencies(width: int, theta: float) -> Frequencies:
    """theta^(−2i/width) for the pairs i of `width` elements, in float32 as the models at large were trained with."""
    return theta ** -(np.arange(0, width, 2, dtype=np.float32) / width)


def rope_frequencies(rope: cfg.Rope, head_width: int, length: int) -> tuple[Frequencies, float]:
    """The frequency of each pair, and the factor on what is turned, for rows of `length`.

    Raises:
      ConfigError: heads of this width can't be rotated so.
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
    """A theta with which the slowest pair turns in `length` as far as it did in `original_length` (with factor 1)."""
    width = 2 * len(plain)
    stretch = c.factor * max(length, c.original_length) / c.original_length - (c.factor - 1)
    return plain_frequencies(width, theta * stretch ** (width / (width - 2))), 1.0


def _yarn(c: cfg.Yarn, plain: Frequencies, theta: float, length: int) -> tuple[Frequencies, float]:
    """Peng et al. 2023, section 3.2 with the ramp between pairs, not between numbers of turns, as published models have
    it.
    """
    width = 2 * len(plain)

    def pair(turns: float) -> float:
        """Which pair, as a real number, turns so often in `original_length`."""
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
    turned = plain * c.original_length / (2 * math.pi)  # how often, in the length trained at
    kept = np.clip((turned - c.low) / (c.high - c.low), 0, 1)
    return plain * kept + plain / c.factor * (1 - kept), 1.0


def _long_rope(c: cfg.LongRope, plain: Frequencies, theta: float, length: int) -> tuple[Frequencies, float]:
    scaled = plain / np.asarray(c.short if length <= c.original_length else c.long)
    if c.attention_factor is not None:
        return scaled, c.attention_factor
    assert c.factor is not None
    return scaled, math.sqrt(1 + math.log(c.factor) / math.log(c.original_length))


# scaling, unscaled frequencies, theta, declared length → frequencies, attention factor
SCALINGS: dict[type[cfg.RopeScaling], Callable[[Any, Frequencies, float, int], tuple[Frequencies, float]]] = {
    cfg.LinearScaling: _linear,
    cfg.DynamicNtk: _dynamic_ntk,
    cfg.Yarn: _yarn,
    cfg.Llama3Scaling: _llama3,
    cfg.LongRope: _long_rope,
}
