"""The interface between a block and its attention: the base class of every kind."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax import config as cfg
from gpt_jax.model.row import Row
from gpt_jax.model.slots import LayerCache

Carry = dict[str, Any]  # what layers pass to the layers above them, by name
CacheShapes = dict[str, jax.ShapeDtypeStruct]


def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """The zeros that a state or a cache starts from.

    Floats are not made by `jnp.zeros`: in a program with a product q @ zeros, XLA's YNNPACK fusions (CPU, jax 0.10.2)
    pass that product a single constant 0 and read past its end, so the result is whatever memory follows it.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        return jnp.zeros(shape, dtype)
    return jnp.broadcast_to(jnp.arange(shape[-1], dtype=dtype) * 0, shape)


class Mixer(nn.Module):
    """x (B, T, C) → y (B, T, C), mixing positions; every kind of attention is one.

    `cache` is None in training; in decoding it is what `cache_shapes` describes, with a batch axis in front, and is
    returned with the T tokens in it: see `gpt_jax.model.slots`. `shared` is passed from layer to layer; a mixer with
    nothing to add returns it unchanged. `train` switches dropout on.
    """

    config: Any
    model: cfg.ModelConfig
    output_scale: float

    def __call__(
        self, x: Float[Array, "B T C"], row: Row, cache: LayerCache | None, shared: Carry, train: bool
    ) -> tuple[Float[Array, "B T C"], LayerCache | None, Carry]:
        raise NotImplementedError

    @staticmethod
    def cache_shapes(config: Any, model: cfg.ModelConfig, length: int) -> CacheShapes:
        """Name → shape, without the batch axis, and type of what decoding keeps of a row of up to `length` tokens."""
        raise NotImplementedError

    @staticmethod
    def mixing_flops(config: Any, model: cfg.ModelConfig, context: int) -> int:
        """Forward operations for each of `context` tokens, apart from the products with kernels."""
        raise NotImplementedError
