"""The cross entropy of a model by blocks of positions, which never holds the logits of all tokens.

The logits of a batch are B · T · V numbers in float32: 200 MB for 1,024 tokens and GPT-2's vocabulary, as much again
for their gradient. By blocks they exist for a part of the positions at a time. The gradient is computed in the same
pass as the loss, so nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from gpt_jax import config
from gpt_jax.data import Batch
from gpt_jax.model.gpt import GPT
from gpt_jax.model.placement import sequence_parts
from gpt_jax.training.loss import Sums, cross_entropy, cross_entropy_sums
from gpt_jax.training.partition import row_parts

LARGEST = 2**26  # logits that a device holds at once, unless `model.head.block` says otherwise: 256 MiB in float32


class Shards(NamedTuple):
    """Into how many groups the devices divide rows, and into how many parts the positions of each."""

    rows: int
    positions: int


LogitsOf = Callable[[Any, Array], Array]
Terms = tuple[Float[Array, "B T"], Float[Array, "B T"], Bool[Array, "B T"]]


def block_length(model: config.ModelConfig, rows: int, positions: int) -> int | None:
    """The number of positions in a block for this many rows on a device; None if one block holds all."""
    if model.head.block is not None:
        return model.head.block if model.head.block < positions else None
    assert model.vocab_size is not None
    if rows * positions * model.vocab_size <= LARGEST:
        return None
    return max(1, LARGEST // (rows * model.vocab_size))


def terms(
    model: nn.Module, params: Any, hidden: Float[Array, "B T C"], targets: Int[Array, "B T"], block: int
) -> Terms:
    """`cross_entropy` of each target, of the hidden vectors below the head."""
    of_part = jax.vmap(jax.vmap(lambda hidden, targets: cross_entropy(_logits_of(model)(params, hidden), targets)))
    parts = _cut((hidden, targets), block, Shards(1, sequence_parts()))
    found = jax.lax.map(lambda part: of_part(*part), parts)
    return jax.tree.map(lambda x: _joined(x, targets.shape[1]), found)


def objective(
    model: nn.Module, params: Any, hidden: Float[Array, "B T C"], batch: Batch, block: int, z_loss: float
) -> tuple[Float[Array, ""], Sums]:
    """Σ weight · (nll + z_loss · (log Z)²) of a batch, of its hidden vectors below the head, and the `Sums`."""
    assert isinstance(model, GPT)
    names = head_names(model.config)
    head = {"params": {name: params["params"][name] for name in names if name in params["params"]}}
    by_blocks = _differentiable(_logits_of(model), block, z_loss, Shards(_row_shards(), sequence_parts()))
    return by_blocks(head, hidden, batch.targets, batch.weights)


def head_names(model: config.ModelConfig) -> tuple[str, ...]:
    """The parts of the parameters that make logits of hidden vectors."""
    return ("head", "embedding") if model.head.tied else ("head",)


def rows_per_device(rows: int) -> int:
    """The rows of a batch that each device of the mesh in context holds."""
    return -(-rows // _row_shards())


def positions_per_device(positions: int) -> int:
    """The positions of a row that each device of the mesh in context holds."""
    return positions // sequence_parts()


def _row_shards() -> int:
    """The number of parts into which the mesh in context divides rows; 1 without a mesh, and inside `pmap`."""
    return row_parts(jax.sharding.get_abstract_mesh())


def _logits_of(model: nn.Module) -> LogitsOf:
    return partial(model.apply, method="logits")  # type: ignore[return-value]


def _differentiable(
    logits_of: LogitsOf, block: int, z_loss: float, shards: Shards
) -> Callable[..., tuple[Float[Array, ""], Sums]]:
    """`f(head, hidden, targets, weights) → objective, sums`, of which the first can be differentiated by `head` and
    `hidden`. Each of `shards` adds up a gradient of its own, so that devices add theirs once.
    """

    def of_block(head: Any, hidden: Array, targets: Array, weights: Array) -> tuple[Array, Sums]:
        sums = cross_entropy_sums(logits_of(head, hidden), targets, weights)
        return sums.loss + z_loss * sums.z_loss, sums

    def of_shard(head: Any, parts: tuple[Array, ...]) -> Any:
        def add(total: Any, part: tuple[Array, ...]) -> tuple[Any, Array]:
            (value, sums), (of_head, of_hidden) = jax.value_and_grad(of_block, (0, 1), has_aux=True)(head, *part)
            return jax.tree.map(jnp.add, total, (value, sums, of_head)), of_hidden

        first = jax.tree.map(lambda x: x[0], parts)
        (value, sums), (of_head, _) = jax.eval_shape(jax.value_and_grad(of_block, (0, 1), has_aux=True), head, *first)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (value, sums, of_head))
        return jax.lax.scan(add, zeros, parts)

    @jax.custom_vjp
    def total(head: Any, hidden: Array, targets: Array, weights: Array) -> tuple[Array, Sums]:
        return forward(head, hidden, targets, weights)[0]

    def forward(head: Any, hidden: Array, targets: Array, weights: Array) -> tuple[Any, Any]:
        parts = _cut((hidden, targets, weights), block, shards)
        of_shards = jax.vmap(of_shard, in_axes=(None, 1), out_axes=(0, 1))  # parts of positions, then groups of rows
        of_shards = jax.vmap(of_shards, in_axes=(None, 1), out_axes=(0, 1))
        by_shard, of_hidden = of_shards(head, parts)
        value, sums, of_head = jax.tree.map(lambda x: jnp.sum(x, axis=(0, 1)), by_shard)
        return (value, sums), (of_head, _joined(of_hidden, hidden.shape[1]))

    def backward(gradients: Any, cotangents: Any) -> tuple[Any, ...]:
        of_head, of_hidden = jax.tree.map(lambda g: (cotangents[0] * g).astype(g.dtype), gradients)
        return of_head, of_hidden, None, None

    total.defvjp(forward, backward)
    return total


def _cut(arrays: Any, block: int, shards: Shards) -> Any:
    """Each (B, T, …) as (blocks, row shards, position shards, B ÷ row shards, block, …). Each shard's positions are
    filled up with zeros, which weigh nothing.
    """

    def cut(x: Array) -> Array:
        (B, T), rest = x.shape[:2], x.shape[2:]
        rows, positions = B // shards.rows, T // shards.positions
        count = -(-positions // block)
        x = x.reshape(shards.rows, rows, shards.positions, positions, *rest)
        x = jnp.pad(x, [(0, 0)] * 3 + [(0, count * block - positions)] + [(0, 0)] * len(rest))
        x = x.reshape(shards.rows, rows, shards.positions, count, block, *rest)
        return jnp.moveaxis(x, (3, 0, 2, 1), (0, 1, 2, 3))

    return jax.tree.map(cut, arrays)


def _joined(x: Array, positions: int) -> Array:
    """The inverse of `_cut`, for rows of this many positions."""
    x = jnp.moveaxis(x, (0, 1, 2, 3), (3, 0, 2, 1))
    shards, rows, parts, count, block, *rest = x.shape
    x = x.reshape(shards, rows, parts, count * block, *rest)[:, :, :, : positions // parts]
    return x.reshape(shards * rows, positions, *rest)
