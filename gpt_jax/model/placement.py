"""Where activations lie on a mesh whose axes divide more than the rows of a batch."""

from __future__ import annotations

import math

import jax
from jax.sharding import PartitionSpec
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
