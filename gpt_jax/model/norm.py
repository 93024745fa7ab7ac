"""Normalization of each position's vector: one module per `NormConfig`, and the table that finds it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax import config as cfg
from gpt_jax.conversion import implementation


class LayerNorm(nn.Module):
    """(x − mean) / √(variance + eps) · scale + bias, the statistics in float32."""

    config: cfg.LayerNorm
    param_dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        y = x.astype(jnp.float32)
        y -= y.mean(-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.config.eps)
        if self.config.scale:
            y *= self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.dtype(self.param_dtype))
        if self.config.bias:
            y += self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.dtype(self.param_dtype))
        return y.astype(x.dtype)


class RmsNorm(nn.Module):
    """x / √(mean of squares + eps) · scale, the statistics in float32."""

    config: cfg.RmsNorm
    param_dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.config.eps)
        if self.config.scale:
            y *= self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.dtype(self.param_dtype))
        return y.astype(x.dtype)


NORMS: dict[type[cfg.NormConfig], type[nn.Module]] = {cfg.LayerNorm: LayerNorm, cfg.RmsNorm: RmsNorm}


def make_norm(choice: cfg.NormConfig | None, param_dtype: str, name: str | None = None) -> nn.Module:
    """The module of a choice of norm; None leaves x as it is."""
    return Identity(name=name) if choice is None else implementation(NORMS, choice)(choice, param_dtype, name=name)


class Identity(nn.Module):
    """x."""

    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        return x
