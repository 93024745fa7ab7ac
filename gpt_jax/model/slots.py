"""One layer's cache: every read and every write of it.

A layer's cache is a dict of arrays, or None where nothing is decoded. It holds values of constant size, such as a state
or what a convolution looks back on (`read`, `part`, `write`), and slots, one for each token that a later query may see
(`extend`): as many as the row has tokens, or a ring of W for a mask that reaches back W steps. Slots hold keys after
their rotation. The number of tokens written so far determines which slot holds which token, so nothing else is stored.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg
from gpt_jax.model.mask import Side, reach
from gpt_jax.model.row import Row

LayerCache = dict[str, Array]  # each (B, …)
Buffers = dict[str, Array]  # each (B, N, S, D), with N and D of its own


def read(cache: LayerCache | None, name: str) -> Array | None:
    """What the cache holds under `name`; None without a cache."""
    return None if cache is None else cache[name]


def part(cache: LayerCache | None, *names: str) -> LayerCache | None:
    """What the cache holds under each of `names`; None without a cache."""
    return None if cache is None else {name: cache[name] for name in names}


def write(cache: LayerCache | None, **values: Array) -> LayerCache | None:
    """The cache with `values` in place of what it held under their names; None without a cache."""
    return None if cache is None else {**cache, **values}


def extend(
    cache: LayerCache | None, new: Buffers, queries: Side, row: Row, mask: cfg.MaskConfig
) -> tuple[LayerCache | None, Buffers, Side]:
    """Writes T tokens, each of `new` (B, N, T, D), into the slots of the same names.

    Returns the cache to keep, the tokens to attend to, each (B, N, S, D), and their side. Without a cache these are
    `new` itself and `queries`, the tokens' own side.
    """
    if cache is None:
        return None, new, queries
    assert row.length is not None and row.padding is not None
    if queries.decay is not None:
        new = new | {"decay": queries.decay[..., None]}
    kept, seen, steps = _extend({name: cache[name] for name in new}, new, row.steps[0], is_ring(mask, row.length))
    decay = seen["decay"][..., 0] if "decay" in seen else None
    return write(cache, **kept), seen, Side(steps, steps[None, :] - row.padding[:, None], None, decay)


def slots(mask: cfg.MaskConfig, length: int) -> int:
    """S: how many of `length` tokens a layer keeps."""
    back = reach(mask)
    return length if back is None else min(back, length)


def is_ring(mask: cfg.MaskConfig, length: int) -> bool:
    """Whether a layer's slots are reused before `length` tokens are written."""
    return slots(mask, length) < length


def _extend(
    buffers: Buffers, new: Buffers, step: Int[Array, ""], ring: bool
) -> tuple[Buffers, Buffers, Int[Array, " S"]]:
    """Writes T tokens at `step`; returns the buffers to keep, those to attend to, and the step of each slot of the
    latter, negative where nothing is written yet.

    Several tokens at once in a ring attend to what was there and to one another: writing first would overwrite what
    the earliest of them may still see.
    """
    (size,) = {buffer.shape[2] for buffer in buffers.values()}
    (tokens,) = {token.shape[2] for token in new.values()}
    arange = jnp.arange(size)
    if not ring or tokens == 1:
        slot = step % size if ring else step
        kept = {name: _write(buffer, new[name], slot) for name, buffer in buffers.items()}
        steps = step - (step - arange) % size if ring else jnp.where(arange < step + tokens, arange, -1)
        return kept, kept, steps
    joined = {name: jnp.concatenate([buffer, new[name]], axis=2) for name, buffer in buffers.items()}
    steps = jnp.concatenate([step - 1 - (step - 1 - arange) % size, step + jnp.arange(tokens)])
    last = min(size, tokens)
    written = (step + tokens - last + jnp.arange(last)) % size
    kept = {name: buffer.at[:, :, written].set(new[name][:, :, -last:]) for name, buffer in buffers.items()}
    return kept, joined, steps


def _write(
    buffer: Float[Array, "B N S D"], new: Float[Array, "B N T D"], slot: Int[Array, ""]
) -> Float[Array, "B N S D"]:
    """`buffer` with `new` from `slot` on."""

    def update() -> Float[Array, "B N S D"]:
        return jax.lax.dynamic_update_slice(buffer, new, (0, 0, slot, 0))

    if buffer.shape[0] > 1:
        return update()
    # For a single row, XLA on CPU fuses the write into each reader and copies the buffer for each: 30 times slower at
    # 1,024 slots. A branch that is always taken keeps them apart.
    return jax.lax.platform_dependent(cpu=lambda: jax.lax.cond(slot >= 0, update, lambda: buffer), default=update)
