"""Spikes of the loss, found inside the step: its decision needs no host, and a resumed run decides alike."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gpt_jax.config import SkipSpikes, SpikesConfig


def first_losses(spikes: SpikesConfig | None) -> Float[Array, " W"] | None:
    """The carried losses before the first step, which NaN stands for; None where the step decides nothing by them."""
    return jnp.full((spikes.window,), jnp.nan, jnp.float32) if isinstance(spikes, SkipSpikes) else None


def is_spike(recent: Float[Array, " W"], loss: Float[Array, ""], sigmas: float) -> Bool[Array, ""]:
    """Whether `loss` exceeds the mean of `recent` by more than `sigmas` of its standard deviations. While some of
    `recent` are NaN, nothing is a spike.
    """
    return loss - jnp.mean(recent) > sigmas * jnp.std(recent)  # a comparison with NaN is false


def pushed(recent: Float[Array, " W"], loss: Float[Array, ""], is_applied: Bool[Array, ""]) -> Float[Array, " W"]:
    """`recent` with `loss` in place of the oldest; unchanged if the update of the step is not applied."""
    return jnp.where(is_applied, jnp.append(recent[1:], loss), recent)
