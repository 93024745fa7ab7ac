"""Normalization of each position's vector: one module per `NormConfig`, and the table that finds it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax import config as cfg
from gpt_jax.config.variant import implementation


class LayerNorm(nn.Module):
    """(x − mean) / √(variance + eps) · scale + bias, the statistics in float32.

    Statistics are those of the last axis; scale and bias cover the last `scaled_axes`.
    """

    config: cfg.LayerNorm
    param_dtype: str
    scaled_axes: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        y = x.astype(jnp.float32)
        y -= y.mean(-1, keepdims=True)
        y = _scaled(self, y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.config.eps))
        if self.config.bias:
            shape = x.shape[-self.scaled_axes :]
            y += self.param("bias", nn.initializers.zeros, shape, jnp.dtype(self.param_dtype))
        return y.astype(x.dtype)


class RmsNorm(nn.Module):
    """x / √(mean of squares + eps) · scale, the statistics in float32, axes as in LayerNorm."""

    config: cfg.RmsNorm
    param_dtype: str
    scaled_axes: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        y = x.astype(jnp.float32)
        y = _scaled(self, y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.config.eps))
        return y.astype(x.dtype)


def _scaled(norm: LayerNorm | RmsNorm, y: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
    c = norm.config
    if not c.scale:
        return y
    initial = nn.initializers.zeros if c.unit_offset else nn.initializers.ones
    scale = norm.param("scale", initial, y.shape[-norm.scaled_axes :], jnp.dtype(norm.param_dtype))
    return y * (1 + scale.astype(jnp.float32)) if c.unit_offset else y * scale


NORMS: dict[type[cfg.NormConfig], type[nn.Module]] = {cfg.LayerNorm: LayerNorm, cfg.RmsNorm: RmsNorm}


def make_norm(
    choice: cfg.NormConfig | None, param_dtype: str, name: str | None = None, scaled_axes: int = 1
) -> nn.Module:
    """The module of a choice of norm; None leaves x as it is."""
    if choice is None:
        return Identity(name=name)
    return implementation(NORMS, choice)(choice, param_dtype, scaled_axes, name=name)


class Identity(nn.Module):
    """x."""

    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        return x
