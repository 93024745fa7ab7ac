"""Averages of the weights over the steps of a run, as running means."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gpt_jax import config
from gpt_jax.config.errors import UserError

Share = Callable[[Any], Float[Array, ""]]
Update = Callable[[Any, Any, Any], Any]


def resolve_average(average: config.AverageConfig | None, steps: int) -> config.AverageConfig | None:
    """The average with its length, if that is None, set to the run's number of steps."""
    if isinstance(average, config.TailAverage) and average.steps is None:
        return dataclasses.replace(average, steps=steps)
    return average


def make_average(average: config.AverageConfig) -> Update:
    """`update(mean, weights, step) → mean`: the mean up to and including `weights`, those after step number `step`
    (from 0).

    `mean` is the result for the step before. At step 0 it does not count, but must be finite. A skipped step counts as
    any other; its weights are those of the step before.

    Raises:
      UserError: the length of the average is None (see `resolve_average`).
    """
    share = SHARES[type(average)](average)
    return lambda mean, weights, step: optax.incremental_update(weights, mean, share(step))


def _ema(c: config.Ema) -> Share:
    def share(step: Any) -> Float[Array, ""]:
        # (1 - decay) / (1 - decay^n) for the n-th weights. A power would round to a few digits for a decay near 1.
        known = -jnp.expm1((step + 1) * math.log(c.decay))
        return jnp.where(step == 0, 1.0, (1 - c.decay) / known)

    return share


def _tail(c: config.TailAverage) -> Share:
    if c.steps is None:
        raise UserError("train.average.steps is None: fill it in with resolve_average(average, train.steps)")
    first = round(c.start * c.steps)
    return lambda step: 1.0 / jnp.maximum(step + 1 - first, 1)


# step (from 0) → the share of that step's weights in the mean, in (0, 1]; 1 restarts the mean.
SHARES: dict[type[config.AverageConfig], Callable[..., Share]] = {config.Ema: _ema, config.TailAverage: _tail}
