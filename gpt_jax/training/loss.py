"""Cross entropy, computed in float32 whatever the type of the logits."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


class Sums(NamedTuple):
    """Sums over the targets of a batch. Unlike means, they may be added over micro-batches, devices and processes.

    `loss` is Σ weight · nll in nats, `z_loss` Σ weight · (log Z)², `hits` the sum of weights of targets that are hit,
    `weight` Σ weight, and `tokens` the number of targets of weight > 0.
    """

    loss: Float[Array, ""]
    z_loss: Float[Array, ""]
    hits: Float[Array, ""]
    weight: Float[Array, ""]
    tokens: Int[Array, ""]


def cross_entropy(
    logits: Float[Array, "*batch V"], targets: Int[Array, "*batch"]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"], Bool[Array, "*batch"]]:
    """Of each target: its negative log-likelihood in nats, log Z = log Σ exp(logits), and whether it is hit, that is
    whether its logit is larger than all others.

    The nll of a target outside of [0, V) is log Z, without an error, so callers must check ids first.
    """
    logits = logits.astype(jnp.float32)
    # A masked sum instead of a gather: it fuses with the softmax, and its gradient needs no second (B, T, V) array.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    hit = jnp.sum(logits >= jax.lax.stop_gradient(target_logit)[..., None], axis=-1) == 1
    return log_z - target_logit, log_z, hit


def cross_entropy_sums(
    logits: Float[Array, "*batch V"], targets: Int[Array, "*batch"], weights: Shaped[Array, "*batch"]
) -> Sums:
    """The `Sums` of a batch. A weight of 0 masks a target."""
    nll, log_z, hit = cross_entropy(logits, targets)
    weights = weights.astype(jnp.float32)
    return Sums(
        loss=jnp.sum(weights * nll),
        z_loss=jnp.sum(weights * jnp.square(log_z)),
        hits=jnp.sum(weights * hit),
        weight=jnp.sum(weights),
        tokens=jnp.sum(weights > 0, dtype=jnp.int32),
    )
