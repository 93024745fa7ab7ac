"""A parameter that is no kernel, norm or table of its own file."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array


class Parameter(nn.Module):
    """An array `leaf` in a scope of its own, so that its presence changes no other parameter's initial value."""

    leaf: str
    initial: Any  # an initializer of jax.nn
    shape: tuple[int, ...]
    param_dtype: str

    @nn.compact
    def __call__(self) -> Array:
        return self.param(self.leaf, self.initial, self.shape, jnp.dtype(self.param_dtype))
