"""Learning-rate schedules built from optax: step → factor of the learning rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from gpt_jax import config
from gpt_jax.config.errors import UserError


def resolve_schedule(schedule: config.ScheduleConfig, steps: int) -> config.ScheduleConfig:
    """The schedule with its length, if that is None, set to the run's number of steps.

    If the run is too short for warmup and decay, the length is that of the shortest schedule with room for both, and
    the run ends before the schedule does.
    """
    if hasattr(schedule, "steps") and schedule.steps is None:
        return dataclasses.replace(schedule, steps=max(steps, _needed(schedule)))  # type: ignore[type-var]
    return schedule


def make_schedule(schedule: config.ScheduleConfig) -> optax.Schedule:
    """step (from 0) → factor in [0, 1]. It rises from 0 to 1 over `warmup` steps, then follows its type, and stays
    constant after `steps`.

    Raises:
      UserError: the length is None (see `resolve_schedule`), or too short for warmup and decay.
    """
    return MAKERS[type(schedule)](schedule)


def shared_steps(old: config.ScheduleConfig, new: config.ScheduleConfig, steps: int) -> int:
    """How many of the first `steps` updates have the same factor under both schedules, which are resolved."""
    one, other = (jnp.broadcast_to(make_schedule(s)(jnp.arange(steps)), (steps,)) for s in (old, new))
    differing = np.flatnonzero(np.asarray(one) != np.asarray(other))
    return int(differing[0]) if differing.size else steps


def stable_steps(schedule: config.ScheduleConfig) -> int | None:
    """The number of updates of a resolved WSD schedule that a longer one does alike; None for other schedules."""
    if not isinstance(schedule, config.WarmupStableDecay):
        return None
    return _length(schedule) - schedule.decay + 1  # the decay begins with the factor 1


def _warm(warmup: int, after: optax.Schedule) -> optax.Schedule:
    return optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup), after], [warmup]) if warmup else after


def _needed(schedule: Any) -> int:
    """The least number of steps with room for the warmup and the decay; a decay takes at least one."""
    return schedule.warmup + (schedule.decay if isinstance(schedule, config.WarmupStableDecay) else 1)


def _length(schedule: config.WarmupCosine | config.LinearDecay | config.WarmupStableDecay) -> int:
    needed = _needed(schedule)
    if schedule.steps is None:
        raise UserError("schedule.steps is None: fill it in with resolve_schedule(schedule, train.steps)")
    if schedule.steps < needed:
        raise UserError(
            f"schedule.steps ({schedule.steps}) leaves no room: raise it to {needed} or shorten schedule.warmup"
        )
    return schedule.steps


def _constant(c: config.Constant) -> optax.Schedule:
    return _warm(c.warmup, optax.constant_schedule(1.0))


def _cosine(c: config.WarmupCosine) -> optax.Schedule:
    steps = _length(c)
    return _warm(c.warmup, optax.cosine_decay_schedule(1.0, steps - c.warmup, alpha=c.final))


def _linear(c: config.LinearDecay) -> optax.Schedule:
    steps = _length(c)
    return _warm(c.warmup, optax.linear_schedule(1.0, c.final, steps - c.warmup))


def _stable(c: config.WarmupStableDecay) -> optax.Schedule:
    steps = _length(c)
    return _warm(c.warmup, optax.linear_schedule(1.0, c.final, c.decay, transition_begin=steps - c.decay - c.warmup))


def _inverse_sqrt(c: config.InverseSqrt) -> optax.Schedule:
    if c.warmup < 1:
        raise UserError(f"schedule.warmup must be at least 1 for InverseSqrt, not {c.warmup}")
    return _warm(c.warmup, lambda count: jnp.sqrt(c.warmup / (jnp.maximum(count, 0) + c.warmup)))


MAKERS: dict[type[config.ScheduleConfig], Callable[..., optax.Schedule]] = {
    config.Constant: _constant,
    config.WarmupCosine: _cosine,
    config.LinearDecay: _linear,
    config.WarmupStableDecay: _stable,
    config.InverseSqrt: _inverse_sqrt,
}
