"""The cache: an explicit pytree that goes into the model and comes out of it. Each layer has its own kind and size."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int

from gpt_jax import config as cfg
from gpt_jax.config.errors import UserError
from gpt_jax.model.convolution import convolution_shapes
from gpt_jax.model.mixer import CacheShapes, zeros
from gpt_jax.model.placement import by_heads
from gpt_jax.model.registry import mixer_of
from gpt_jax.model.slots import LayerCache


@struct.dataclass
class Cache:
    """What decoding keeps of B rows.

    `layers[l]` is what layer l keeps of the tokens so far, by name (see its `Mixer.cache_shapes`); `step` the number of
    tokens written so far, `length` the number that there is room for, both with padding; `padding` (B,) the number of
    tokens of left padding in each row.
    """

    # No type is declared, because a `jax.tree.map` may put shapes, shardings or axes in place of the arrays.
    layers: Any
    step: Any
    padding: Any
    length: int = struct.field(pytree_node=False)


def init_cache(model: cfg.ModelConfig, batch_size: int, length: int, padding: Int[Array, " B"] | None = None) -> Cache:
    """An empty cache for `batch_size` rows of up to `length` tokens.

    `padding[b]` is the number of tokens at the start of row b that only bring the rows to one length. No query attends
    to them, and positions count from the first token after them.

    Raises:
      UserError: `length` is not positive, or exceeds a learned table of positions.
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
    return {name: by_heads(zeros((batch_size, *shape.shape), shape.dtype)) for name, shape in shapes.items()}
