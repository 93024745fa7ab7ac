"""The cache: an explicit pytree that goes into the model and comes out of it, of each layer's own kind and size."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int

from gpt_jax import config as cfg
from gpt_jax.config.errors import UserError
from gpt_jax.model.convolution import convolution_shapes
from gpt_jax.model.mixer import CacheShapes, LayerCache, empty
from gpt_jax.model.registry import mixer_of


@struct.dataclass
class Cache:
    """`layers[l]`: what layer l keeps of the tokens so far, by name, see its `Mixer.cache_shapes`; `step`: tokens
    written so far, padding included; `padding` (B,): left padding of each row.

    `length` is the number of tokens the cache has room for, padding included.
    """

    # Arrays, or what a `jax.tree.map` puts in their place (shapes, shardings, axes): so no type is declared.
    layers: Any
    step: Any
    padding: Any
    length: int = struct.field(pytree_node=False)


def init_cache(model: cfg.ModelConfig, batch_size: int, length: int, padding: Int[Array, " B"] | None = None) -> Cache:
    """An empty cache for `batch_size` rows of up to `length` tokens.

    `padding[b]` says how many tokens at the beginning of row b are there only to bring the rows to one length; nobody
    attends to them, and positions count from the first token after them.

    Raises:
      ValueError: `length` is no positive number or exceeds a learned table of positions.
    """
    if length < 1:
        raise UserError(f"a cache needs room for at least 1 token, not {length}")
    cfg.check_length(model, length)
    layers = tuple(_init_layer(block, model, batch_size, length) for block in model.blocks)
    padding = jnp.zeros(batch_size, jnp.int32) if padding is None else jnp.asarray(padding, jnp.int32)
    return Cache(layers, jnp.zeros((), jnp.int32), padding, length)


def _init_layer(block: cfg.BlockConfig, model: cfg.ModelConfig, batch_size: int, length: int) -> LayerCache:
    shapes: CacheShapes = dict(mixer_of(block.attention).cache_shapes(block.attention, model, length))
    sublayers = ("attention",) if block.mlp is None else ("attention", "mlp")
    shapes |= convolution_shapes(block.convolution, model.dtype, **dict.fromkeys(sublayers, model.width))
    return {name: empty((batch_size, *shape.shape), shape.dtype) for name, shape in shapes.items()}
