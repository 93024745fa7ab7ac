"""One train step on all devices: by `jit` over a mesh, or by `pmap`. Either way the numbers are those of one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gpt_jax.config.errors import UserError
from gpt_jax.data import Batch
from gpt_jax.training.state import TrainState
from gpt_jax.training.step import Metrics, TrainStep

AXIS = "data"
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes, or the ones given, along one axis `data`."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree with a copy of each leaf on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(batch: Batch, mesh: Mesh, parallel: Literal["jit", "pmap", "vmap"], accumulate: int = 1) -> Batch:
    """This process's rows (host arrays), as the step that was made for `parallel` takes them.

    Under "jit" they become global arrays, divided over the mesh along their first axis; under "pmap" they get a leading
    axis of this process's devices; under "vmap" they have a leading axis of runs, and are divided along the second.

    Raises:
      ValueError: rows that can't be divided over this process's devices and `accumulate` micro-batches.
    """
    rows, devices = batch.tokens.shape[-2], len(mesh.local_devices)
    if rows % (devices * accumulate):
        raise UserError(
            f"{rows} rows can't be divided over {devices} devices and {accumulate} micro-batches: "
            f"make train.batch_size / {jax.process_count()} a multiple of {devices * accumulate}"
        )
    if parallel == "pmap":
        return jax.tree.map(lambda x: x.reshape(devices, rows // devices, *x.shape[1:]), batch)
    sharding = NamedSharding(mesh, PartitionSpec(*((None, AXIS) if parallel == "vmap" else (AXIS,))))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def traced_under(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, traced where the mesh is known, which Pallas kernels need to divide their rows over it."""

    def under(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return under


def compile_step(train_step: TrainStep, mesh: Mesh, parallel: Literal["jit", "pmap"]) -> Step:
    """`step(state, batch)` for a replicated state, which is donated, and a batch from `shard_batch`."""
    if parallel == "jit":
        replicated = NamedSharding(mesh, PartitionSpec())
        return jax.jit(traced_under(mesh, train_step), donate_argnums=0, out_shardings=replicated)
    return jax.pmap(
        partial(train_step, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),  # the metrics are sums over devices already
        devices=list(mesh.local_devices) if jax.process_count() == 1 else None,
        donate_argnums=0,
    )
