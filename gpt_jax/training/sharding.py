"""How states and batches lie on the devices, and one training step on all of them: by `jit` over a mesh, or by `pmap`.

Either way the numbers are those of one device. States are made, changed and restored with the one
`partition.shardings`, and rows are divided by the one `batch_sharding`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from gpt_jax.config.errors import UserError
from gpt_jax.config.mesh import ALL_DATA, ROWS, SEQUENCE, check_positions, divides_parameters, fill_mesh
from gpt_jax.data import Batch
from gpt_jax.training.partition import row_parts
from gpt_jax.training.state import TrainState
from gpt_jax.training.step import Metrics, TrainStep

AXIS = "data"  # of pmap
# A product with a divided kernel gathers the kernel first. Below this size in MiB the TPU compiler does so by itself;
# above it, it multiplies part by part, and each part reads and writes the whole result: 26 s a step in place of 11 s
# for 1 B parameters on v5e:4x4 over fsdp, by its own estimate.
TPU_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_mesh(devices: Sequence[jax.Device] | None = None, axes: str = ALL_DATA) -> Mesh:
    """A mesh of `devices` (None: all devices of all processes) with the axes that `Config.mesh` spells.

    Raises:
      ConfigError: the sizes of the axes don't fit the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = fill_mesh(axes, len(devices))
    types = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays of which each device has a copy, such as metrics."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, is_stacked: bool = False) -> NamedSharding:
    """The sharding of the arrays of a batch: rows divided over the axes `data` and `fsdp`, positions over `sequence`.

    Rows are the first axis, or the second if the batches of several runs are stacked (`is_stacked`).
    """
    rows = tuple(name for name in ROWS if name in mesh.shape)
    divided = (rows, SEQUENCE) if SEQUENCE in mesh.shape else (rows,)
    return NamedSharding(mesh, PartitionSpec(*((None, *divided) if is_stacked else divided)))


def row_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process's devices hold the rows of part `index` of `count` equal parts of a global batch.

    Processes among which only other axes divide hold the same rows.

    Raises:
      UserError: the rows of two processes overlap without being the same.
    """
    if jax.process_count() == 1:
        return 0, 1
    parts = row_parts(mesh)
    held: dict[int, set[int]] = {}
    rows_alone = NamedSharding(mesh, PartitionSpec(tuple(name for name in ROWS if name in mesh.shape)))
    of_each: Mapping[Any, Any] = rows_alone.devices_indices_map((parts,))
    for device, (rows,) in of_each.items():
        held.setdefault(device.process_index, set()).update(range(parts)[rows])
    shares = sorted({tuple(sorted(rows)) for rows in held.values()})
    if sum(map(len, shares)) != parts or len(set(map(len, shares))) > 1:
        raise UserError(
            f"the mesh {dict(mesh.shape)} gives the processes rows that overlap in part: choose sizes of data and fsdp"
            f" whose product is a multiple of {jax.process_count()} or divides it"
        )
    return shares.index(tuple(sorted(held[jax.process_index()]))), len(shares)


def spread(tree: Any, shardings: Any) -> Any:
    """The arrays of a tree in one sharding, or in those of a tree of them.

    Arrays of this process alone must be the same in all processes: each takes its parts of its own, and sends nothing.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(_spread, tree, shardings)


def _spread(x: jax.Array, sharding: Sharding) -> jax.Array:
    if not (isinstance(x, jax.Array) and x.is_fully_addressable and x.committed):
        return jax.device_put(x, sharding)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of the arrays of a tree on each device."""
    return spread(tree, replicated(mesh))


def settled(tree: Any, mesh: Mesh) -> Any:
    """`tree`, on a mesh of CPUs that divides parameters once it is computed. There, independent programs that are in
    flight at once may take the threads on which one another's devices should meet, and wait for ever.
    """
    is_divided = divides_parameters(mesh.shape)
    return jax.block_until_ready(tree) if is_divided and mesh.devices.flat[0].platform == "cpu" else tree


def shape_structs(shapes: Any, shardings: Any) -> Any:
    """A tree of arrays or shapes as `jax.ShapeDtypeStruct`s with one sharding, or a tree of them, to compile or to
    restore for.
    """
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), shapes, shardings)


def shard_batch(batch: Batch, mesh: Mesh, parallel: Literal["jit", "pmap", "vmap"], accumulate: int = 1) -> Batch:
    """This process's rows (host arrays) on its devices, in the form that the step for `parallel` takes.

    Under "jit", arrays become global, divided by `batch_sharding`. Under "pmap", they gain a leading axis of this
    process's devices. Under "vmap", they have a leading axis of runs, and the second axis is divided.

    Raises:
      UserError: the rows cannot be divided over this process's devices and `accumulate` micro-batches, or their
        positions over the axis `sequence`.
    """
    if SEQUENCE in mesh.shape:
        check_positions(batch.tokens.shape[-1], mesh.shape[SEQUENCE])
    count = row_share(mesh)[1]
    rows, shards = batch.tokens.shape[-2], row_parts(mesh) // count
    if rows % (shards * accumulate):
        raise UserError(
            f"{rows} rows cannot be divided over {shards} devices and {accumulate} micro-batches: "
            f"make train.batch_size / {count} a multiple of {shards * accumulate}"
        )
    if parallel == "pmap":
        return jax.tree.map(lambda x: x.reshape(shards, rows // shards, *x.shape[1:]), batch)
    sharding = batch_sharding(mesh, is_stacked=parallel == "vmap")

    def place(x: Any) -> jax.Array:  # of whole rows, of which this process's devices may hold a part of the positions
        whole = (*x.shape[:-2], x.shape[-2] * count, x.shape[-1])
        return jax.make_array_from_process_local_data(sharding, x, whole)

    return jax.tree.map(place, batch)


def traced_under(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, traced with the mesh in context; Pallas kernels need it to divide their rows."""

    def under(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return under


def compile_step(train_step: TrainStep, mesh: Mesh, parallel: Literal["jit", "pmap"], state: Any = None) -> Step:
    """`step(state, batch)` for a batch from `shard_batch` and a state, which is donated. `state` is the state's
    sharding, or a tree of them; None: each device has a copy.
    """
    if parallel == "jit":
        places = (replicated(mesh) if state is None else state, replicated(mesh))
        options = TPU_OPTIONS if mesh.devices.flat[0].platform == "tpu" else None
        return jax.jit(traced_under(mesh, train_step), donate_argnums=0, out_shardings=places, compiler_options=options)
    return jax.pmap(
        partial(train_step, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),  # the metrics are already summed over devices
        devices=list(mesh.local_devices) if jax.process_count() == 1 else None,
        donate_argnums=0,
    )
