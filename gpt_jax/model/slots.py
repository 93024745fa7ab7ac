"""How a layer's keys are written to its cache and found again.

A layer keeps as many slots as its mask lets a query see: all of them, or a ring of W for a window of W. Slots hold
keys after their rotation. Nothing but the number of tokens written so far is needed to know which slot holds which, so
nothing else is stored.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg
from gpt_jax.model.mask import reach

Buffers = dict[str, Array]  # each (B, N, S, D), with N and D of its own


def slots(mask: cfg.MaskConfig, length: int) -> int:
    """S: how many of `length` tokens a layer has to keep."""
    back = reach(mask)
    return length if back is None else min(back, length)


def is_ring(mask: cfg.MaskConfig, length: int) -> bool:
    """Whether a layer's slots are used anew before `length` tokens are written."""
    return slots(mask, length) < length


def extend(
    buffers: Buffers, new: Buffers, step: Int[Array, ""], ring: bool
) -> tuple[Buffers, Buffers, Int[Array, " S"]]:
    """Writes T tokens at `step`; returns the buffers to keep, those to attend to, and the step of each slot of these
    (negative: an empty one).

    Several tokens at once in a ring attend to what was there and to one another: writing first would overwrite what
    the earliest may still see.
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

    def write() -> Float[Array, "B N S D"]:
        return jax.lax.dynamic_update_slice(buffer, new, (0, 0, slot, 0))

    if buffer.shape[0] > 1:
        return write()
    # For a single row, XLA on CPU fuses the write into each reader, and copies the buffer for each: 30 times slower at
    # 1,024 slots. A branch, always taken, keeps them apart.
    return jax.lax.platform_dependent(cpu=lambda: jax.lax.cond(slot >= 0, write, lambda: buffer), default=write)
