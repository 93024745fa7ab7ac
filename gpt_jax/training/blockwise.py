"""The cross entropy of a model by blocks of tokens, which never holds the logits of all tokens.

The logits of a batch are B · T · V numbers in float32: 200 MB for 1,024 tokens and GPT-2's vocabulary, as much again
for their gradient. By blocks they exist for a part of the tokens at a time. The gradient is computed in the same pass
as the loss, so nothing is computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gpt_jax import config
from gpt_jax.config.mesh import ROWS, SEQUENCE
from gpt_jax.data import Batch
from gpt_jax.model.gpt import GPT
from gpt_jax.model.placement import axes_of, axis_size
from gpt_jax.training.loss import Sums, cross_entropy, cross_entropy_sums
from gpt_jax.training.partition import gathered

FALLBACK = "fallback"  # the scope of what hardly ever runs, which plans leave out
LARGEST = 2**27  # logits that a device holds at once, unless `model.head.block` says otherwise: 512 MiB in float32

Terms = tuple[Float[Array, "B T"], Float[Array, "B T"], Bool[Array, "B T"]]


def block_length(model: config.ModelConfig, tokens: int) -> int | None:
    """The number of tokens in a block for this many tokens on a device; None if one block holds all."""
    if model.head.block is not None:
        return model.head.block if model.head.block < tokens else None
    assert model.vocab_size is not None
    if tokens * model.vocab_size <= LARGEST:
        return None
    return 1 << max(0, (LARGEST // model.vocab_size).bit_length() - 1)  # a power of two fills the tiles of a TPU


def terms(
    model: nn.Module, params: Any, hidden: Float[Array, "B T C"], targets: Int[Array, "B T"], block: int
) -> Terms:
    """`cross_entropy` of each target, of the hidden vectors below the head."""
    shards = _shards()
    parts = _cut((hidden, targets), block, shards)
    logits_of: Any = partial(model.apply, params, method="logits")
    found = jax.lax.map(lambda part: cross_entropy(logits_of(part[0]), part[1]), parts)
    return jax.tree.map(lambda x: _joined(x, targets.shape, shards), found)


def objective(
    model: nn.Module, params: Any, hidden: Float[Array, "B T C"], batch: Batch, block: int, z_loss: float
) -> tuple[Float[Array, ""], Sums]:
    """Σ weight · (nll + z_loss · (log Z)²) of a batch, of its hidden vectors below the head, and the `Sums`."""
    assert isinstance(model, GPT)
    names = head_names(model.config)
    head = {"params": {name: params["params"][name] for name in names if name in params["params"]}}
    return _differentiable(model, block, z_loss, _shards())(head, hidden, batch.targets, batch.weights)


def head_names(model: config.ModelConfig) -> tuple[str, ...]:
    """The parts of the parameters that make logits of hidden vectors."""
    return ("head", "embedding") if model.head.tied else ("head",)


def tokens_per_device(rows: int, positions: int) -> int:
    """The tokens of a batch that each device of the mesh in context holds."""
    shards = _shards()
    return -(-rows // shards.rows) * (positions // shards.positions)


class Shards(NamedTuple):
    """Into how many groups the devices divide rows, and into how many parts the positions of each."""

    rows: int
    positions: int


def _shards() -> Shards:
    """Those of the mesh in context; of one each without a mesh, and inside `pmap`."""
    return Shards(axis_size(*ROWS), axis_size(SEQUENCE))


def _differentiable(
    model: GPT, block: int, z_loss: float, shards: Shards
) -> Callable[..., tuple[Float[Array, ""], Sums]]:
    """`f(head, hidden, targets, weights) → objective, sums`, of which the first can be differentiated by `head` and
    `hidden`. Each of `shards` groups of tokens adds up a gradient of its own, so that devices add theirs once.
    """

    def of_block(shifted: bool, head: Any, hidden: Array, targets: Array, weights: Array) -> tuple[Array, Sums]:
        hidden, targets, weights = hidden[None], targets[None], weights[None]
        shift: Any = model.apply(head, hidden, targets, method="logits_of") if shifted else None
        logits: Any = model.apply(head, hidden, method="logits")
        sums = cross_entropy_sums(logits, targets, weights, shift)
        return sums.loss + z_loss * sums.z_loss, sums

    def of_shard(shifted: bool, head: Any, parts: tuple[Array, ...]) -> Any:
        gradient = jax.value_and_grad(partial(of_block, shifted), (0, 1), has_aux=True)

        def add(total: Any, part: tuple[Array, ...]) -> tuple[Any, Array]:
            (value, sums), (of_head, of_hidden) = gradient(head, *part)
            return jax.tree.map(jnp.add, total, (value, sums, of_head)), of_hidden

        first = jax.tree.map(lambda x: x[0], parts)
        (value, sums), (of_head, _) = jax.eval_shape(gradient, head, *first)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (value, sums, of_head))
        return jax.lax.scan(add, zeros, parts)

    def of_shards(shifted: bool, head: Any, parts: tuple[Array, ...]) -> Any:
        return jax.vmap(partial(of_shard, shifted), in_axes=(None, 1), out_axes=(0, 1))(head, parts)

    @jax.custom_vjp
    def total(head: Any, hidden: Array, targets: Array, weights: Array) -> tuple[Array, Sums]:
        return forward(head, hidden, targets, weights)[0]

    def forward(head: Any, hidden: Array, targets: Array, weights: Array) -> tuple[Any, Any]:
        head = gathered(head)
        parts = _cut((hidden, targets, weights), block, shards)
        # Target logits as shifts let the sums of exp() be taken as the logits are computed, without reading them again.
        # If one is far below the largest logit, the sum overflows, and everything is computed again with the largest.
        found = of_shards(True, head, parts)

        def again() -> Any:
            return of_shards(False, head, parts)

        is_finite = jnp.all(jnp.isfinite(found[0][0]))
        found = jax.lax.cond(is_finite, lambda: found, jax.named_call(again, name=FALLBACK))
        (value, sums, of_head), of_hidden = found
        value, sums, of_head = jax.tree.map(lambda x: jnp.sum(x, axis=0), (value, sums, of_head))
        return (value, sums), (of_head, _joined(of_hidden, hidden.shape, shards))

    def backward(gradients: Any, cotangents: Any) -> tuple[Any, ...]:
        of_head, of_hidden = jax.tree.map(lambda g: (cotangents[0] * g).astype(g.dtype), gradients)
        return of_head, of_hidden, None, None

    total.defvjp(forward, backward)
    return total


def _cut(arrays: Any, block: int, shards: Shards) -> Any:
    """Each (B, T, …) as (blocks, shards, block, …), filled up with zeros, which weigh nothing."""
    axes = axes_of(*ROWS, SEQUENCE)

    def cut(x: Array) -> Array:
        (B, T), rest = x.shape[:2], x.shape[2:]
        if shards.positions > 1:
            x = x.reshape(shards.rows, B // shards.rows, shards.positions, T // shards.positions, *rest).swapaxes(1, 2)
        x = x.reshape(math.prod(shards), -1, *rest)
        count = -(-x.shape[1] // block)
        x = jnp.pad(x, [(0, 0), (0, count * block - x.shape[1]), *[(0, 0)] * len(rest)])
        x = jnp.moveaxis(x.reshape(x.shape[0], count, block, *rest), 1, 0)
        return x if math.prod(shards) == 1 else jax.lax.with_sharding_constraint(x, PartitionSpec(None, axes))

    return jax.tree.map(cut, arrays)


def _joined(x: Array, shape: tuple[int, ...], shards: Shards) -> Array:
    """The inverse of `_cut`, for an array that was of `shape`."""
    (B, T), rest = shape[:2], x.shape[3:]
    x = jnp.moveaxis(x, 0, 1).reshape(math.prod(shards), -1, *rest)[:, : B * T // math.prod(shards)]
    if shards.positions > 1:
        x = x.reshape(shards.rows, shards.positions, B // shards.rows, T // shards.positions, *rest).swapaxes(1, 2)
    return x.reshape(B, T, *rest)
