"""What every kind of attention is to a block: the base of its module."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax import config as cfg
from gpt_jax.model.row import Row

LayerCache = dict[str, Array]
Shared = dict[str, Any]  # what layers hand on to those above them, by name
CacheShapes = dict[str, jax.ShapeDtypeStruct]


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """Zeros: what a state or a cache starts from.

    Not `jnp.zeros` where they are floats: in one program with a product q @ zeros, XLA's YNNPACK fusions (CPU, jax
    0.10.2) hand that product the lone constant 0 and read past it, so that whatever lies behind comes out.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        return jnp.zeros(shape, dtype)
    return jnp.broadcast_to(jnp.arange(shape[-1], dtype=dtype) * 0, shape)


class Mixer(nn.Module):
    """x (B, T, C) → y (B, T, C), mixing positions; every kind of attention is one.

    `cache` is None in training; else what `cache_shapes` describes, with a batch axis in front, and comes back with the
    T tokens in it. `shared` goes from layer to layer; who has nothing to add hands it on as it came.
    """

    config: Any
    model: cfg.ModelConfig
    output_scale: float

    def __call__(
        self, x: Float[Array, "B T C"], row: Row, cache: LayerCache | None, shared: Shared, train: bool
    ) -> tuple[Float[Array, "B T C"], LayerCache | None, Shared]:
        raise NotImplementedError

    @staticmethod
    def cache_shapes(config: Any, model: cfg.ModelConfig, length: int) -> CacheShapes:
        """Name → shape and type of what decoding keeps of a row with room for `length` tokens."""
        raise NotImplementedError

    @staticmethod
    def mixing_flops(config: Any, model: cfg.ModelConfig, context: int) -> int:
        """Forward operations per token, one of `context`, beside the products with kernels."""
        raise NotImplementedError
