"""A training step of several runs at once: `vmap` over runs that differ only in seeds and learning rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gpt_jax.data import Batch
from gpt_jax.training.sharding import replicated, traced_under
from gpt_jax.training.state import Given, TrainState
from gpt_jax.training.step import Metrics, TrainStep

StepTogether = Callable[[TrainState, Batch, Given], tuple[TrainState, list[Metrics]]]


def compile_together(train_step: TrainStep, mesh: Mesh) -> StepTogether:
    """`step(states, batches, given)` of K runs, where every array has a leading axis of K; returns the states and K
    dicts of metrics.

    Each device has a copy of the states, which are donated; batches come from `shard_batch`.
    """

    def step(states: TrainState, batches: Batch, given: Given) -> tuple[TrainState, list[Metrics]]:
        def one(state: TrainState, batch: Batch, given: Given) -> tuple[TrainState, Metrics]:
            return train_step(state, batch, None, given)

        states, metrics = jax.vmap(one)(states, batches, given)
        return states, [lane(metrics, i) for i in range(given.learning_rate.shape[0])]

    return jax.jit(traced_under(mesh, step), donate_argnums=0, out_shardings=replicated(mesh))


def stack(trees: Sequence[Any]) -> Any:
    """K trees as one whose arrays have a leading axis of K."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def stack_rows(batches: Sequence[Batch]) -> Batch:
    """As `stack`, for batches of NumPy arrays."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def lane(trees: Any, i: Any) -> Any:
    """The i-th of the trees that were stacked."""
    return jax.tree.map(lambda x: x[i], trees)
