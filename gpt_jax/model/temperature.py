"""Factors on queries that depend on their position, beside the scale. A kind is one row of `TEMPERATURES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg
from gpt_jax.config.variant import implementation
from gpt_jax.model.mask import reach
from gpt_jax.model.parameter import Parameter


def temperature(
    c: cfg.TemperatureConfig, mask: cfg.MaskConfig, positions: Int[Array, "b T"], heads: int, param_dtype: str
) -> Float[Array, "b T h 1"]:
    """The factor of each query, for all heads (h = 1) or for each; its parameters belong to the calling module."""
    return implementation(TEMPERATURES, c)(c, mask, positions, heads, param_dtype)


def _log_temperature(c: cfg.LogTemperature, mask: cfg.MaskConfig, positions: Array, *_: Any) -> Array:
    return (1 + c.strength * jnp.log1p((positions // c.length).astype(jnp.float32)))[:, :, None, None]


def _ssmax(c: cfg.Ssmax, mask: cfg.MaskConfig, positions: Array, heads: int, param_dtype: str) -> Array:
    s = Parameter("s", nn.initializers.constant(c.initial), (heads,), param_dtype, name="ssmax")()
    in_sight, back = positions + 1, reach(mask)
    if isinstance(mask, cfg.Chunk):
        in_sight = positions % mask.size + 1
    elif back is not None:
        in_sight = jnp.minimum(in_sight, back)
    return (s.astype(jnp.float32) * jnp.log(in_sight.astype(jnp.float32))[:, :, None])[..., None]


TEMPERATURES: dict[type[cfg.TemperatureConfig], Callable[..., Float[Array, "b T h 1"]]] = {
    cfg.LogTemperature: _log_temperature,
    cfg.Ssmax: _ssmax,
}
