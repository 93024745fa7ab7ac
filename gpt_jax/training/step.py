"""One training step, a pure function: (state, batch) → (state, metrics)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from gpt_jax import config
from gpt_jax.data import Batch
from gpt_jax.model.adapter import replaced, trainable
from gpt_jax.model.gpt import GPT
from gpt_jax.training import blockwise
from gpt_jax.training.accumulation import Loss, accumulate
from gpt_jax.training.average import make_average
from gpt_jax.training.loss import Sums, cross_entropy_sums
from gpt_jax.training.optimizer import make_optimizer
from gpt_jax.training.schedule import make_schedule
from gpt_jax.training.spikes import is_spike, pushed
from gpt_jax.training.state import Given, TrainState, given_by

Metrics = dict[str, Array]
TrainStep = Callable[..., tuple["TrainState", Metrics]]


def make_train_step(model: nn.Module, c: config.Config) -> TrainStep:
    """`train_step(state, batch, axis_name=None, given=None)` for this model and configuration.

    The gradient is that of Σ weight · (nll + z_loss · (log Z)²) / Σ weight over the global batch, however the batch is
    divided into micro-batches and over devices. Inside `pmap`, `axis_name` names the axis of devices; under `jit` the
    batch is the global one. `given` replaces the configuration's seed and learning rate, so that several runs can share
    a compiled step.

    A step whose loss or gradient is not finite, or whose loss spikes if the run skips spikes, leaves parameters and
    moments unchanged, bit for bit.

    Metrics: `loss` (nats per token, without the z-loss), `accuracy`, `tokens` (targets of weight > 0), `grad_norm`
    (before clipping), `learning_rate` (of the main group), `skipped` and `skipped_in_row` (counts that include this
    step).

    Raises:
      UserError: from here, the schedule or the average has no length; when traced, `train.accumulate` does not divide
        the rows.
    """
    optimizer, schedule, train = make_optimizer(c.optimizer), make_schedule(c.schedule), c.train
    is_random = not isinstance(model, GPT) or config.has_dropout(model.config)
    skipping = train.spikes if isinstance(train.spikes, config.SkipSpikes) else None
    update_average = None if train.average is None else make_average(train.average)

    def train_step(
        state: TrainState, batch: Batch, axis_name: str | None = None, given: Given | None = None
    ) -> tuple[TrainState, Metrics]:
        def over_devices(tree: Any) -> Any:
            return tree if axis_name is None else jax.lax.psum(tree, axis_name)

        given = given_by(c) if given is None else given
        key = _dropout_key(given, state, axis_name)
        weight = over_devices(jnp.sum(batch.weights.astype(jnp.float32)))
        scale = 1.0 / jnp.where(weight > 0, weight, 1.0)  # a batch without targets has loss 0 and gradient 0

        params = trainable(state.params)
        loss_of = _loss(model, train, state.params, scale)
        gradients, sums = over_devices(accumulate(loss_of, params, batch, key, train.accumulate, is_random))
        norm = optax.tree.norm(gradients)
        is_finite = jnp.isfinite(norm) & jnp.isfinite(sums.loss)  # the norm is finite only if every gradient is

        is_good = is_finite
        if skipping is not None:
            is_good &= ~is_spike(state.recent, scale * sums.loss, skipping.sigmas)
        changes, moments = optimizer.update(_clip(gradients, norm, train.clip_norm), state.optimizer, params)
        rate = given.learning_rate * schedule(state.step)
        moved = jax.tree.map(lambda p, change: (p + rate * change).astype(p.dtype), params, changes)
        moved, moments = _select(is_good, (moved, moments), (params, state.optimizer))
        average = state.average if update_average is None else update_average(state.average, moved, state.step)

        recent = None if skipping is None else pushed(state.recent, scale * sums.loss, is_good)
        skipped = state.skipped + (1 - is_good.astype(jnp.int32))
        in_row = jnp.where(is_good, 0, state.skipped_in_row + 1)
        metrics = {
            "loss": scale * sums.loss,
            "accuracy": scale * sums.hits,
            "tokens": sums.tokens,
            "grad_norm": norm,
            "learning_rate": jnp.asarray(rate, jnp.float32),
            "skipped": skipped,
            "skipped_in_row": in_row,
        }
        params = replaced(state.params, moved)
        return TrainState(state.step + 1, params, moments, skipped, in_row, average, recent), metrics

    return train_step


def model_arguments(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The model's keyword arguments for a batch: segments, positions and, if it has masks of type `Prefix`, the prefix
    length of each row, which is the number of tokens before the first target that counts.
    """
    arguments: dict[str, Any] = {"segments": batch.segments, "positions": batch.positions}
    if isinstance(model, GPT) and config.has_prefix(model.config):
        arguments["prefix"] = jnp.argmax(batch.weights > 0, axis=1) + 1
    return arguments


def loss_block(model: nn.Module, batch: Batch) -> int | None:
    """The tokens of a device whose logits the loss of a batch holds at once; None: all."""
    if not isinstance(model, GPT):
        return None
    return blockwise.block_length(model.config, blockwise.tokens_per_device(*batch.tokens.shape))


def _dropout_key(given: Given, state: TrainState, axis_name: str | None) -> Array:
    """The key of this step and, inside `pmap`, of this device."""
    key = jax.random.fold_in(jax.random.wrap_key_data(given.key), state.step)
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))


def _loss(model: nn.Module, train: config.Train, all_params: Any, scale: Float[Array, ""]) -> Loss:
    """`loss_of(params, micro_batch, key)`: the objective of the trainable parameters, and the sums it is made of."""

    def loss_of(params: Any, micro: Batch, key: Array) -> tuple[Array, Sums]:
        variables, rngs = replaced(all_params, params), {"dropout": key}
        arguments = {**model_arguments(model, micro), "train": True, "rngs": rngs}
        block = loss_block(model, micro)
        if block is not None:
            hidden: Any = model.apply(variables, micro.tokens, **arguments, method="backbone")
            total, sums = blockwise.objective(model, variables, hidden, micro, block, train.z_loss or 0.0)
            return scale * total, sums
        logits: Any = model.apply(variables, micro.tokens, **arguments)
        sums = cross_entropy_sums(logits, micro.targets, micro.weights)
        z_loss = 0.0 if train.z_loss is None else train.z_loss * sums.z_loss
        return scale * (sums.loss + z_loss), sums

    return loss_of


def _clip(gradients: Any, norm: Float[Array, ""], bound: float | None) -> Any:
    """Gradients scaled down to a global norm of `bound`; None: unchanged."""
    if bound is None:
        return gradients
    factor = jnp.where(norm > bound, bound / norm, 1.0)
    return jax.tree.map(lambda g: (factor * g).astype(g.dtype), gradients)


def _select(condition: Bool[Array, ""], yes: Any, no: Any) -> Any:
    """One tree or the other. A multiplication by 0 would keep NaN; `where` does not."""
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), yes, no)
