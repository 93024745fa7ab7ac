"""Which axes of the mesh divide which parameters: one table for initial values, steps, checkpoints and plans.

Kernels are (in, out) with the heads side by side. `tensor` divides what one head or hidden unit can compute alone
(Megatron: Shoeybi et al. 2019, arXiv:1909.08053): the outputs of the projections to queries, keys, values and the MLP's
hidden units, the inputs of those back to the residual stream, and the vocabulary. `fsdp` divides the other side (ZeRO:
Rajbhandari et al. 2019, arXiv:1910.02054). Moments are divided as their parameters. Vectors are whole everywhere.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from gpt_jax.config import AttentionConfig, ModelConfig
from gpt_jax.config.mesh import ROWS, TENSOR, divides_parameters
from gpt_jax.model.paths import map_with_path, matches
from gpt_jax.model.placement import axes_of

Axes = tuple[str | None, str | None]

# The first glob that matches a parameter's path holds, for its last two axes. Those before them count layers.
RULES: tuple[tuple[str, Axes], ...] = (
    ("**/adapter/**", (None, None)),
    ("**/attention/output/kernel", ("tensor", "fsdp")),
    ("**/mlp/down/kernel", ("tensor", "fsdp")),
    ("**/embedding/table", ("tensor", "fsdp")),
    ("**/embedding/position/table", (None, "fsdp")),
    ("**/value_embedding/table", (None, "fsdp")),
    ("**/kernel", ("fsdp", "tensor")),
)
# Projections of which `tensor` divides whole heads of keys and values, or nothing.
KEYS_AND_VALUES = ("**/attention/key/kernel", "**/attention/value/kernel")


def row_parts(mesh: Mesh | AbstractMesh) -> int:
    """The number of parts into which a mesh divides the rows of a batch; 1 for an empty one."""
    return math.prod(mesh.shape[name] for name in ROWS if name in mesh.axis_names)


def shardings(model: ModelConfig, mesh: Mesh, shapes: Any) -> Any:
    """The sharding of each array of a tree of parameters, states or checkpoints' items, which has these shapes.

    An axis that does not divide the length leaves the array whole along it. On a mesh of data alone it is one sharding
    for all: each device has a copy.
    """
    if not divides_parameters(mesh.shape):
        return NamedSharding(mesh, PartitionSpec())
    heads = [_kv_heads(attention) for attention in model.attentions]
    tensor = mesh.shape[TENSOR] if TENSOR in mesh.axis_names else 1
    whole = KEYS_AND_VALUES if any(count % tensor for count in heads) else ()
    return map_with_path(lambda path, leaf: NamedSharding(mesh, _spec(path, leaf.shape, mesh, whole)), shapes)


def gathered(params: Any) -> Any:
    """Parameters without their division over the axis `fsdp` of the mesh in context: for a loop that reads them in
    each of its turns, which would gather them each time.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not axes_of("fsdp"):
        return params

    def gather(path: str, leaf: Any) -> Any:
        kept = (axis if axis == "tensor" else None for axis in _spec(path, leaf.shape, mesh, ()))
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(*kept))

    return map_with_path(gather, params)


def _kv_heads(attention: AttentionConfig) -> int:
    """The number of heads that keys and values have; 1 for a kind without heads."""
    for name in ("kv_heads", "key_heads", "heads"):
        if (count := getattr(attention, name, None)) is not None:
            return int(count)
    return 1


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, whole: tuple[str, ...]) -> PartitionSpec:
    """`whole`: globs of what `tensor` must not divide."""
    axes = next((axes for glob, axes in RULES if matches(path, [glob])), None)
    if axes is None or len(shape) < 2:
        return PartitionSpec()
    if matches(path, whole):
        axes = (axes[0], None)
    kept = [
        axis if axis in mesh.axis_names and length % mesh.shape[axis] == 0 else None
        for axis, length in zip(axes, shape[-2:], strict=True)
    ]
    return PartitionSpec(*[None] * (len(shape) - 2), *kept)
