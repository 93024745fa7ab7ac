"""Several runs in one program: a training step that is `vmap`ped over runs which differ in seeds and learning rates
alone. Each keeps its own loop, records and checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt_jax.data import Batch
from gpt_jax.training.sharding import traced_under
from gpt_jax.training.state import Given, TrainState
from gpt_jax.training.step import Metrics, TrainStep

StepTogether = Callable[[TrainState, Sequence[Batch]], tuple[TrainState, Sequence[Metrics]]]


def compile_together(
    train_step: TrainStep, mesh: Mesh
) -> Callable[[TrainState, Batch, Given], tuple[TrainState, list[Metrics]]]:
    """`step(states, batches, given)` of K runs, each argument with a leading axis of K; metrics come as K dicts.

    States are replicated over the mesh and donated; a batch is divided along its rows, see `shard_batch`.
    """

    def step(states: TrainState, batches: Batch, given: Given) -> tuple[TrainState, list[Metrics]]:
        def one(state: TrainState, batch: Batch, given: Given) -> tuple[TrainState, Metrics]:
            return train_step(state, batch, None, given)

        states, metrics = jax.vmap(one)(states, batches, given)
        return states, [lane(metrics, i) for i in range(given.learning_rate.shape[0])]

    return jax.jit(traced_under(mesh, step), donate_argnums=0, out_shardings=NamedSharding(mesh, PartitionSpec()))


def stack(trees: Sequence[Any]) -> Any:
    """One tree of the runs', each array with a leading axis of K."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def stack_rows(batches: Sequence[Batch]) -> Batch:
    """As `stack`, on the host."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def lane(trees: Any, i: Any) -> Any:
    """What `stack` made of the i-th tree."""
    return jax.tree.map(lambda x: x[i], trees)
