"""Where activations and caches lie on the mesh in context."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from gpt_jax.config.mesh import AXES, ROWS, SEQUENCE, TENSOR


def by_rows(x: Shaped[Array, "B ..."]) -> Shaped[Array, "B ..."]:
    """x with its rows divided over the mesh in context, its positions too where the mesh has the axis `sequence`, and
    all else whole.

    Without it, the compiler may divide activations as the parameters are, and send them over the network in place of
    the parameters. On a mesh with data alone, or without a mesh, nothing needs to be said.
    """
    if not axes_of(*AXES) or axes_of(*AXES) == ("data",):
        return x
    rows = _rows(x.shape[0])
    if rows is None:
        return x
    divides = x.ndim > 2 and divides_positions() and x.shape[1] % axis_size(SEQUENCE) == 0
    return jax.lax.with_sharding_constraint(x, PartitionSpec(rows, SEQUENCE if divides else None))


def axes_of(*names: str) -> tuple[str, ...]:
    """Those of `names` over which the mesh in context divides arrays: not those of which the code at hand runs on one
    device alone, inside `pmap` or `shard_map`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return tuple(name for name in names if name in kinds and kinds[name] is not AxisType.Manual)


def axis_size(*names: str) -> int:
    """The number of parts into which the mesh in context divides an array over the axes of these names; 1 without."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in axes_of(*names))


def divides_positions() -> bool:
    """Whether the mesh in context has the axis `sequence`, of more than one device."""
    return axis_size(SEQUENCE) > 1


def flattened(x: Shaped[Array, "*batch C"]) -> Shaped[Array, "*flat C"]:
    """x (…, C) as (N, C). Where positions are divided, x itself: no device holds neighbouring rows of the other."""
    return x if divides_positions() else x.reshape(-1, x.shape[-1])


def to_heads(x: Shaped[Array, "B H T *rest"]) -> Shaped[Array, "B H T *rest"]:
    """x with all positions of a head on one device, and its heads divided where its positions were: for recurrences,
    which go along a row. Heads that cannot be divided so are computed by every device of the axis `sequence`.
    """
    return _by_heads(_by_positions(x)) if _divides(x) else x


def from_heads(x: Shaped[Array, "B H T *rest"]) -> Shaped[Array, "B H T *rest"]:
    """The inverse of `to_heads`."""
    return _by_positions(_by_heads(x)) if _divides(x) else x


def _divides(x: Shaped[Array, "B H T *rest"]) -> bool:
    """Whether positions are divided; those of a prompt need not be a multiple of the devices."""
    return divides_positions() and x.shape[2] % axis_size(SEQUENCE) == 0


def whole_rows(x: Shaped[Array, "B T"]) -> Shaped[Array, "B T"]:
    """x with all positions of a row on each device that has a part of it."""
    if not divides_positions():
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(_rows(x.shape[0])))


# Going from one to the other is one exchange; where only one of them is said, the compiler may find a place between
# them, for which it brings whole arrays together.


def _by_heads(x: Shaped[Array, "B H T *rest"]) -> Shaped[Array, "B H T *rest"]:
    axes = axes_of(TENSOR, SEQUENCE)
    while axes and x.shape[1] % axis_size(*axes):
        axes = axes[:-1]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(_rows(x.shape[0]), axes))


def _by_positions(x: Shaped[Array, "B H T *rest"]) -> Shaped[Array, "B H T *rest"]:
    return jax.lax.with_sharding_constraint(x, PartitionSpec(_rows(x.shape[0]), _heads(x.shape[1]), SEQUENCE))


def _rows(count: int) -> tuple[str, ...] | None:
    """The axes that divide this many rows; None: the number of rows does not allow it."""
    return None if count % axis_size(*ROWS) else axes_of(*ROWS)


def _heads(count: int) -> tuple[str, ...] | None:
    """The axes that divide this many heads, as `_rows`."""
    return None if count % axis_size(TENSOR) else axes_of(TENSOR)


def by_heads(x: Shaped[Array, "B N ..."]) -> Shaped[Array, "B N ..."]:
    """x with its rows and its heads divided over the mesh in context, as far as their numbers allow."""
    if not axes_of(*ROWS, TENSOR):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(_rows(x.shape[0]), _heads(x.shape[1])))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh over which the arrays of a tree lie; None if they are on one device."""
    for leaf in jax.tree.leaves(tree):
        place = leaf.sharding if isinstance(leaf, jax.Array) else None
        if isinstance(place, NamedSharding) and isinstance(place.mesh, Mesh) and place.mesh.size > 1:
            return place.mesh
    return None


def on_tpu() -> bool:
    """Whether the mesh in context is of TPUs, attached or planned for. It may decide layouts, never numbers."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device is not None and device.platform == "tpu"
