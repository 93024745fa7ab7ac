"""Normalization over the last axis: one module per `NormConfig`, and the table that maps one to the other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax import config as cfg
from gpt_jax.config.variant import implementation


class LayerNorm(nn.Module):
    """(x − mean) / √(variance + eps) · scale + bias (Ba et al. 2016, arXiv:1607.06450), computed in float32.

    Mean and variance are over the last axis; scale and bias have the shape of the last `scaled_axes` axes.
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
    """x / √(mean of squares + eps) · scale (Zhang & Sennrich 2019, arXiv:1910.07467), computed in float32; axes as in
    LayerNorm.
    """

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
    """The module that implements `choice`; None gives the identity."""
    if choice is None:
        return Identity(name=name)
    return implementation(NORMS, choice)(choice, param_dtype, scaled_axes, name=name)


class Identity(nn.Module):
    """Returns x unchanged."""

    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        return x
