"""What a synthetic task is, and the parts that tasks are made of."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpt_jax.config import DataConfig

POWER = 0.01  # Zoology's exponent `power_a`: a small one places most queries soon after the pairs.

# Maps uniform random numbers (B, n) in [0, 1) to symbols (B, T + 1) and a mask of the answers among them (B, T + 1). In
# a task whose targets do not follow as inputs, it maps them to inputs (B, T) and their targets (B, T).
Draw = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Task(NamedTuple):
    """A task with V = `vocab_size` symbols; `draw` makes rows of T = `length` from `numbers` uniform numbers each.

    `follows` says that each target is the next input, as in text; else all targets of a row count.
    """

    vocab_size: int
    length: int
    numbers: int
    draw: Draw
    follows: bool = True


@functools.singledispatch
def make_task(config: DataConfig) -> Task:
    """Returns the task that `config` describes; `make_task.register` adds a type of configuration.

    Raises:
      TypeError: the type of `config` is not registered.
    """
    raise TypeError(f"{type(config).__name__} is not a registered task: register it with gpt_jax.data.tasks.make_task")


def integers(uniform: np.ndarray, bound: int) -> np.ndarray:
    """Turns uniform numbers in [0, 1) into integers in [0, bound)."""
    return (uniform * bound).astype(np.int64)
