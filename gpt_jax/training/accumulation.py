"""Gradients of a batch, added up over its micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from gpt_jax.config.errors import UserError
from gpt_jax.config.mesh import DATA
from gpt_jax.data import Batch
from gpt_jax.model.placement import axis_size, divides_positions
from gpt_jax.training.loss import Sums

Loss = Callable[[Any, Batch, Array], tuple[Array, Sums]]


def accumulate(
    loss_of: Loss, params: Any, batch: Batch, key: Array, parts: int, is_random: bool = True
) -> tuple[Any, Sums]:
    """Gradients and sums of `loss_of(params, micro_batch, key)`, added in float32 over `parts` micro-batches, one after
    the other.

    Devices along the mesh's axis `data` add what they have found once, after the last micro-batch, and along `fsdp`,
    where no device has room for all gradients, after each. XLA decides when to add for a loss that draws from its key
    (`is_random`), which must draw for the rows of all devices at once, and where positions are divided too.

    Raises:
      UserError: `parts` does not divide the rows of the batch.
    """
    if parts == 1:
        return jax.grad(loss_of, has_aux=True)(params, batch, key)
    rows = batch.tokens.shape[0]
    if rows % parts:
        raise UserError(f"train.accumulate ({parts}) must divide the {rows} rows of a batch on a device: change one")
    # With a ring inside, what CPU devices send now and then went astray in programs from the compilation cache.
    if is_random or axis_size(DATA) == 1 or divides_positions():
        return _in_turn(loss_of, params, batch, key, parts)

    def alone(params: Any, batch: Batch, key: Array) -> tuple[Any, Sums]:
        return jax.lax.psum(_in_turn(loss_of, params, batch, key, parts), DATA)

    whole, rows_apart = PartitionSpec(), PartitionSpec(DATA)
    # Without check_vma=False, JAX would add the gradients of each micro-batch.
    return jax.shard_map(
        alone, in_specs=(whole, rows_apart, whole), out_specs=whole, axis_names={DATA}, check_vma=False
    )(params, batch, key)


def _in_turn(loss_of: Loss, params: Any, batch: Batch, key: Array, parts: int) -> tuple[Any, Sums]:
    gradient = jax.grad(loss_of, has_aux=True)
    rows = batch.tokens.shape[0]

    def cut(x: Array) -> Array:
        # Every `parts`-th row: each device's rows spread evenly over the micro-batches, and no row changes its device.
        return x.reshape(rows // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def exact(dtype: Any) -> Any:
        return jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype

    def add(total: tuple[Any, Sums], xs: tuple[Batch, Array]) -> tuple[tuple[Any, Sums], None]:
        micro, index = xs
        part = gradient(params, micro, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, part), None

    micros = (jax.tree.map(cut, batch), jnp.arange(parts))
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], micros[0]), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, exact(s.dtype))), shapes)
    total, _ = jax.lax.scan(add, zeros, micros)
    return jax.tree.map(lambda x, s: x.astype(s.dtype), total, shapes)
