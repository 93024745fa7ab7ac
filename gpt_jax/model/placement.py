"""Where activations and caches lie on the mesh in context."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from gpt_jax.config.mesh import ROWS


def by_rows(x: Shaped[Array, "B ..."]) -> Shaped[Array, "B ..."]:
    """x with its rows divided over the mesh in context and all else whole.

    Without it, the compiler may divide activations as the parameters are, and send them over the network in place of
    the parameters. On a mesh with data alone, or without a mesh, nothing needs to be said.
    """
    mesh = jax.sharding.get_abstract_mesh()
    rows = tuple(name for name in ROWS if name in mesh.axis_names)
    if mesh.axis_names in ((), ("data",)) or x.shape[0] % math.prod(mesh.shape[name] for name in rows):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(rows))


def by_heads(x: Shaped[Array, "B N ..."]) -> Shaped[Array, "B N ..."]:
    """x with its rows and its heads divided over the mesh in context, as far as their numbers allow."""
    mesh = jax.sharding.get_abstract_mesh()
    rows = tuple(name for name in ROWS if name in mesh.axis_names)
    heads = tuple(name for name in ("tensor",) if name in mesh.axis_names)
    if not rows + heads:
        return x
    kept = [
        names if size % math.prod(mesh.shape[name] for name in names) == 0 else None
        for size, names in zip(x.shape, (rows, heads), strict=False)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*kept))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh over which the arrays of a tree lie; None if they are on one device."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh.size > 1:
            return leaf.sharding.mesh
    return None


def on_tpu() -> bool:
    """Whether the mesh in context is of TPUs, attached or planned for. It may decide layouts, never numbers."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device is not None and device.platform == "tpu"
