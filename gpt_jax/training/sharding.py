"""How states and batches lie on the devices, and one training step on all of them: by `jit` over a mesh, or by `pmap`.

Either way the numbers are those of one device. States are made, changed, restored and evaluated with the one
`state_sharding`, and rows are divided by the one `batch_sharding`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from gpt_jax.config.errors import UserError
from gpt_jax.data import Batch
from gpt_jax.training.state import TrainState
from gpt_jax.training.step import Metrics, TrainStep

AXIS = "data"
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `devices` (None: all devices of all processes) along one axis, `data`."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def state_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array of a state (parameters, moments, counters) and of metrics: a copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, is_stacked: bool = False) -> NamedSharding:
    """The sharding of the arrays of a batch: rows divided over the axis `data`.

    Rows are the first axis, or the second if the batches of several runs are stacked (`is_stacked`).
    """
    return NamedSharding(mesh, PartitionSpec(*((None, AXIS) if is_stacked else (AXIS,))))


def row_shards(mesh: Mesh) -> int:
    """The number of parts that the rows of a global batch are divided into."""
    return mesh.shape[AXIS]


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The arrays of a tree placed by `state_sharding`."""
    return jax.device_put(tree, state_sharding(mesh))


def shape_structs(shapes: Any, sharding: Sharding) -> Any:
    """A tree of arrays or shapes as `jax.ShapeDtypeStruct`s with this sharding, to compile or to restore for."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)


def shard_batch(batch: Batch, mesh: Mesh, parallel: Literal["jit", "pmap", "vmap"], accumulate: int = 1) -> Batch:
    """This process's rows (host arrays) on its devices, in the form that the step for `parallel` takes.

    Under "jit", arrays become global, divided by `batch_sharding`. Under "pmap", they gain a leading axis of this
    process's devices. Under "vmap", they have a leading axis of runs, and the second axis is divided.

    Raises:
      UserError: the rows cannot be divided over this process's devices and `accumulate` micro-batches.
    """
    rows, shards = batch.tokens.shape[-2], row_shards(mesh) // jax.process_count()
    if rows % (shards * accumulate):
        raise UserError(
            f"{rows} rows cannot be divided over {shards} devices and {accumulate} micro-batches: "
            f"make train.batch_size / {jax.process_count()} a multiple of {shards * accumulate}"
        )
    if parallel == "pmap":
        return jax.tree.map(lambda x: x.reshape(shards, rows // shards, *x.shape[1:]), batch)
    sharding = batch_sharding(mesh, is_stacked=parallel == "vmap")
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def traced_under(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, traced with the mesh in context; Pallas kernels need it to divide their rows."""

    def under(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return under


def compile_step(train_step: TrainStep, mesh: Mesh, parallel: Literal["jit", "pmap"]) -> Step:
    """`step(state, batch)` for a state placed by `state_sharding`, which is donated, and a batch from `shard_batch`."""
    if parallel == "jit":
        return jax.jit(traced_under(mesh, train_step), donate_argnums=0, out_shardings=state_sharding(mesh))
    return jax.pmap(
        partial(train_step, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),  # the metrics are already summed over devices
        devices=list(mesh.local_devices) if jax.process_count() == 1 else None,
        donate_argnums=0,
    )
