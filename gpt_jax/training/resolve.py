"""Fills in what a configuration derives from its data and its number of steps."""

from __future__ import annotations

import dataclasses

from gpt_jax.config import Config, ScheduleConfig
from gpt_jax.config.errors import ConfigError
from gpt_jax.data import Data
from gpt_jax.training.average import resolve_average
from gpt_jax.training.schedule import resolve_schedule


def resolve(config: Config, data: Data) -> Config:
    """The configuration with all derived values filled in: the size of the vocabulary, the seed of the data, and the
    lengths of the schedule and of the average.

    Raises:
      ConfigError: `model.vocab_size` is smaller than the tokenizer's.
    """
    size = data.vocab_size if config.model.vocab_size is None else config.model.vocab_size
    if size < data.vocab_size:
        raise ConfigError(f"model.vocab_size ({size}) is too small for the tokenizer's {data.vocab_size} ids: raise it")
    return resolved(config, size)


def resolved(config: Config, vocab_size: int) -> Config:
    """The configuration with all derived values filled in, for a vocabulary of this size."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vocab_size=vocab_size),
        data=dataclasses.replace(config.data, seed=config.data_seed),  # type: ignore[type-var]
        schedule=resolve_schedule(config.schedule, config.train.steps),
        train=dataclasses.replace(config.train, average=resolve_average(config.train.average, config.train.steps)),
    )


def lengthened(config: Config, steps: int, schedule: ScheduleConfig | None = None) -> Config:
    """The run with another number of steps and, unless that is None, another schedule. Other values derived from the
    old number stay.
    """
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))
    return longer if schedule is None else dataclasses.replace(longer, schedule=resolve_schedule(schedule, steps))
