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
    logits: Float[Array, "*batch V"], targets: Int[Array, "*batch"], shift: Float[Array, "*batch"] | None = None
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"], Bool[Array, "*batch"]]:
    """Of each target: its negative log-likelihood in nats, log Z = log Σ exp(logits), and whether it is hit, that is
    whether its logit is larger than all others.

    `shift` is subtracted before exp(). The largest logit, which None stands for, must be known before the sum can
    begin; with another number, a product that makes the logits can sum them as it goes. The results differ by rounding,
    until a logit exceeds `shift` by more than 88: then they are infinite or NaN.

    The nll of a target outside of [0, V) is log Z, without an error, so callers must check ids first.
    """
    logits = logits.astype(jnp.float32)
    # A masked sum instead of a gather: it fuses with the softmax, and its gradient needs no second (B, T, V) array.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    if shift is None:
        log_z = jax.nn.logsumexp(logits, axis=-1)
    else:
        shift = jax.lax.stop_gradient(shift)
        log_z = jnp.log(jnp.sum(jnp.exp(logits - shift[..., None]), axis=-1)) + shift
    other = jnp.max(jnp.where(is_target, -jnp.inf, jax.lax.stop_gradient(logits)), axis=-1)
    return log_z - target_logit, log_z, jax.lax.stop_gradient(target_logit) > other


def cross_entropy_sums(
    logits: Float[Array, "*batch V"],
    targets: Int[Array, "*batch"],
    weights: Shaped[Array, "*batch"],
    shift: Float[Array, "*batch"] | None = None,
) -> Sums:
    """The `Sums` of a batch. A weight of 0 masks a target; `shift` as in `cross_entropy`."""
    nll, log_z, hit = cross_entropy(logits, targets, shift)
    weights = weights.astype(jnp.float32)
    return Sums(
        loss=jnp.sum(weights * nll),
        z_loss=jnp.sum(weights * jnp.square(log_z)),
        hits=jnp.sum(weights * hit),
        weight=jnp.sum(weights),
        tokens=jnp.sum(weights > 0, dtype=jnp.int32),
    )
