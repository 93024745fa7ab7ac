"""The matrix product that every projection is."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class Linear(nn.Module):
    """x @ kernel (+ bias) over the last axis; `kernel` (C, F) in `param_dtype`, the product in x's dtype.

    `std` · `scale` is the kernel's standard deviation at the start; `std` None is 1/√C (LeCun et al. 1998).
    """

    features: int
    bias: bool
    std: float | None
    param_dtype: str
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch F"]:
        std = x.shape[-1] ** -0.5 if self.std is None else self.std
        kernel = self.param(
            "kernel",
            nn.initializers.normal(std * self.scale),
            (x.shape[-1], self.features),
            jnp.dtype(self.param_dtype),
        )
        # Two axes, not three: XLA on CPU computes the kernel's gradient of a (B, T, ·) product through fused
        # transposing copies.
        y = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
        if self.bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,), jnp.dtype(self.param_dtype)).astype(
                x.dtype
            )
        return y.reshape(*x.shape[:-1], self.features)
