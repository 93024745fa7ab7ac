"""Single parameters: scales, sinks, factors and others that are not part of a projection, norm or embedding."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array


class Parameter(nn.Module):
    """One array named `leaf`, in a scope of its own so that adding it changes no other parameter's initial value."""

    leaf: str
    initial: Any  # an initializer of jax.nn.initializers
    shape: tuple[int, ...]
    param_dtype: str

    @nn.compact
    def __call__(self) -> Array:
        return self.param(self.leaf, self.initial, self.shape, jnp.dtype(self.param_dtype))
