"""Several runs in one program: a training step that is `vmap`ped over runs which differ in seeds and learning rates
alone. Each keeps its own loop, records and checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt_jax.data import Batch as DataBatch
from gpt_jax.training.loop import Course, HostBatch, Loop, TrainingDiverged
from gpt_jax.training.sharding import traced_under
from gpt_jax.training.step import Batch, Given, Metrics, TrainState, TrainStep

StepTogether = Callable[[TrainState, Sequence[HostBatch]], tuple[TrainState, Sequence[Metrics]]]


def compile_together(
    train_step: TrainStep, mesh: Mesh
) -> Callable[[TrainState, Batch, Given], tuple[TrainState, list[Metrics]]]:
    """`step(states, batches, given)` of K runs, each argument with a leading axis of K; metrics come as K dicts.

    States are replicated over the mesh and donated; a batch is divided along its rows, see `place_batch`.
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


def stack_rows(batches: Sequence[HostBatch]) -> HostBatch:
    """As `stack`, on the host."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def lane(trees: Any, i: Any) -> Any:
    """What `stack` made of the i-th tree."""
    return jax.tree.map(lambda x: x[i], trees)


def run_together(
    loops: Sequence[Loop],
    step: StepTogether,
    states: TrainState,
    batches: Sequence[Iterator[DataBatch]],
    starts: Sequence[int],
) -> list[int | TrainingDiverged]:
    """Goes with all loops at once; returns how each ended: the number of its updates, or why it diverged.

    They start after as many updates each, but for runs that diverged before. A run that ended keeps its lane, unseen,
    so that the program and with it the others' numbers stay.
    """
    cut = jax.jit(lane)
    courses: dict[int, Course] = {
        i: loop.course(lambda i=i: cut(states, i), rows, start)  # type: ignore[misc]
        for i, (loop, rows, start) in enumerate(zip(loops, batches, starts, strict=True))
    }
    ends: dict[int, int | TrainingDiverged] = {}
    rows: dict[int, HostBatch] = {}

    def advance(i: int, move: Callable[[], HostBatch]) -> None:
        try:
            rows[i] = move()
        except StopIteration as end:
            ends[i] = end.value
        except TrainingDiverged as error:
            ends[i] = error

    for i, course in courses.items():
        advance(i, partial(next, course))
    while len(ends) < len(courses):
        some = next(iter(rows.values()))  # for a lane that ended before it had any
        states, metrics = step(states, [rows[i] if i in rows else some for i in courses])
        for i, course in courses.items():
            if i not in ends:
                advance(i, partial(course.send, metrics[i]))
    return [ends[i] for i in courses]
