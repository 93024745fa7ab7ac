"""The cross entropy of a model by blocks of positions, which never holds the logits of all tokens.

The logits of a batch are B · T · V numbers in float32: 200 MB for 1,024 tokens and GPT-2's vocabulary, as much again
for their gradient. By blocks they exist for a part of the positions at a time. The gradient is computed in the same
pass as the loss, so nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from gpt_jax import config
from gpt_jax.data import Batch
from gpt_jax.model.gpt import GPT
from gpt_jax.training.loss import Sums, cross_entropy, cross_entropy_sums
from gpt_jax.training.partition import row_parts

LARGEST = 2**26  # logits that a device holds at once, unless `model.head.block` says otherwise: 256 MiB in float32

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
    parts = _cut((hidden, targets), block, 1)
    found = jax.lax.map(lambda part: cross_entropy(_logits_of(model)(params, part[0][0]), part[1][0]), parts)
    return jax.tree.map(lambda x: _joined(x[:, None], targets.shape[1]), found)


def objective(
    model: nn.Module, params: Any, hidden: Float[Array, "B T C"], batch: Batch, block: int, z_loss: float
) -> tuple[Float[Array, ""], Sums]:
    """Σ weight · (nll + z_loss · (log Z)²) of a batch, of its hidden vectors below the head, and the `Sums`."""
    assert isinstance(model, GPT)
    names = head_names(model.config)
    head = {"params": {name: params["params"][name] for name in names if name in params["params"]}}
    by_blocks = _differentiable(_logits_of(model), block, z_loss, _shards())
    return by_blocks(head, hidden, batch.targets, batch.weights)


def head_names(model: config.ModelConfig) -> tuple[str, ...]:
    """The parts of the parameters that make logits of hidden vectors."""
    return ("head", "embedding") if model.head.tied else ("head",)


def rows_per_device(rows: int) -> int:
    """The rows of a batch that each device of the mesh in context holds."""
    return -(-rows // _shards())


def _shards() -> int:
    """The number of parts into which the mesh in context divides rows; 1 without a mesh, and inside `pmap`."""
    return row_parts(jax.sharding.get_abstract_mesh())


def _logits_of(model: nn.Module) -> LogitsOf:
    return partial(model.apply, method="logits")  # type: ignore[return-value]


def _differentiable(
    logits_of: LogitsOf, block: int, z_loss: float, shards: int
) -> Callable[..., tuple[Float[Array, ""], Sums]]:
    """`f(head, hidden, targets, weights) → objective, sums`, of which the first can be differentiated by `head` and
    `hidden`. Each of `shards` groups of rows adds up a gradient of its own, so that devices add theirs once.
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
        by_shard, of_hidden = jax.vmap(of_shard, in_axes=(None, 1), out_axes=(0, 1))(head, parts)
        value, sums, of_head = jax.tree.map(lambda x: jnp.sum(x, axis=0), by_shard)
        return (value, sums), (of_head, _joined(of_hidden, hidden.shape[1]))

    def backward(gradients: Any, cotangents: Any) -> tuple[Any, ...]:
        of_head, of_hidden = jax.tree.map(lambda g: (cotangents[0] * g).astype(g.dtype), gradients)
        return of_head, of_hidden, None, None

    total.defvjp(forward, backward)
    return total


def _cut(arrays: Any, block: int, shards: int) -> Any:
    """Each (B, T, …) as (blocks, shards, B ÷ shards, block, …), filled up with zeros, which weigh nothing."""

    def cut(x: Array) -> Array:
        count = -(-x.shape[1] // block)
        x = jnp.pad(x, [(0, 0), (0, count * block - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(shards, -1, count, block, *x.shape[2:]), 2, 0)

    return jax.tree.map(cut, arrays)


def _joined(x: Array, positions: int) -> Array:
    """The inverse of `_cut`."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(x.shape[0] * x.shape[1], -1, *x.shape[4:])[:, :positions]
