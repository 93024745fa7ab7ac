"""The key/value cache: an explicit pytree that goes into the model and comes out of it.

A layer keeps as many slots as its mask lets a query see: all of them, or a ring of W for a window of W. Slots hold
keys after their rotation. Nothing but the number of tokens written so far is needed to know which slot holds which, so
nothing else is stored.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg

LayerCache = dict[str, Array]


@struct.dataclass
class Cache:
    """`layers[l]` {"key", "value"}: (B, K, S, D), and what its short convolutions look back on: (B, taps − 1, N);
    `step`: tokens written so far, padding included; `padding` (B,): left padding of each row.

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
        raise ValueError(f"a cache needs room for at least 1 token, not {length}")
    cfg.check_length(model, length)
    layers = tuple(_init_layer(block, model, batch_size, length) for block in model.blocks)
    padding = jnp.zeros(batch_size, jnp.int32) if padding is None else jnp.asarray(padding, jnp.int32)
    return Cache(layers, jnp.zeros((), jnp.int32), padding, length)


def _init_layer(block: cfg.BlockConfig, model: cfg.ModelConfig, batch_size: int, length: int) -> LayerCache:
    attention = block.attention
    assert isinstance(attention, cfg.Attention)
    H, K, D = attention.heads, attention.resolved_kv_heads, attention.resolved_head_width(model.width)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("key", "value"), (K, slots(attention.mask, length), D))
    if attention.convolution is not None:
        for name, heads in (("query", H), ("key", K), ("value", K)):
            shapes[f"{name}_convolution"] = (attention.convolution - 1, heads * D)
    if block.convolution is not None:
        for name in ("attention",) if block.mlp is None else ("attention", "mlp"):
            shapes[f"{name}_convolution"] = (block.convolution - 1, model.width)
    return {name: jnp.zeros((batch_size, *shape), jnp.dtype(model.dtype)) for name, shape in shapes.items()}


def slots(mask: cfg.MaskConfig, length: int) -> int:
    """S: how many of `length` tokens a layer has to keep."""
    return min(mask.size, length) if isinstance(mask, cfg.Window) else length


def extend(
    cache: LayerCache, key: Float[Array, "B K T D"], value: Float[Array, "B K T D"], step: Int[Array, ""], is_ring: bool
) -> tuple[LayerCache, Float[Array, "B K S D"], Float[Array, "B K S D"], Int[Array, " S"]]:
    """Writes T tokens at `step`; returns the cache, the keys and values to attend to, and the step of each (negative:
    an empty slot).

    Several tokens at once in a ring attend to what was there and to one another: writing first would overwrite what
    the earliest may still see.
    """
    size, new = cache["key"].shape[2], key.shape[2]
    arange = jnp.arange(size)
    if not is_ring:
        cache = {"key": _write(cache["key"], key, step), "value": _write(cache["value"], value, step)}
        return cache, cache["key"], cache["value"], arange
    if new == 1:
        slot = step % size
        cache = {"key": _write(cache["key"], key, slot), "value": _write(cache["value"], value, slot)}
        return cache, cache["key"], cache["value"], step - (step - arange) % size
    keys = jnp.concatenate([cache["key"], key], axis=2)
    values = jnp.concatenate([cache["value"], value], axis=2)
    steps = jnp.concatenate([step - 1 - (step - 1 - arange) % size, step + jnp.arange(new)])
    kept = min(size, new)
    written = (step + new - kept + jnp.arange(kept)) % size
    cache = {
        "key": cache["key"].at[:, :, written].set(key[:, :, -kept:]),
        "value": cache["value"].at[:, :, written].set(value[:, :, -kept:]),
    }
    return cache, keys, values, steps


def _write(
    buffer: Float[Array, "B K S D"], new: Float[Array, "B K T D"], slot: Int[Array, ""]
) -> Float[Array, "B K S D"]:
    """`buffer` with `new` from `slot` on."""

    def write() -> Float[Array, "B K S D"]:
        return jax.lax.dynamic_update_slice(buffer, new, (0, 0, slot, 0))

    if buffer.shape[0] > 1:
        return write()
    # For a single row, XLA on CPU fuses the write into each reader, and copies the buffer for each: 30 times slower at
    # 1,024 slots. A branch, always taken, keeps them apart.
    return jax.lax.platform_dependent(cpu=lambda: jax.lax.cond(slot >= 0, write, lambda: buffer), default=write)
