"""Cross entropy, in float32 whatever the model computes in."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


class Sums(NamedTuple):
    """Sums over the tokens of a batch, which add up over micro-batches, devices and processes where means would not.

    `loss` Σ weight · nll in nats, `z_loss` Σ weight · (log Z)², `hits` Σ weight where the target alone is most likely,
    `weight` Σ weight, `tokens` how many targets have a weight above 0.
    """

    loss: Float[Array, ""]
    z_loss: Float[Array, ""]
    hits: Float[Array, ""]
    weight: Float[Array, ""]
    tokens: Int[Array, ""]


def cross_entropy(
    logits: Float[Array, "*batch V"], targets: Int[Array, "*batch"]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"], Bool[Array, "*batch"]]:
    """Negative log-likelihood of `targets` in nats, log Z = log Σ exp(logits), whether the target alone is most likely.

    A target outside [0, V) has no likelihood: its nll is log Z, so check ids before they come here.
    """
    logits = logits.astype(jnp.float32)
    # A masked sum, not a gather: it fuses with the softmax, and its gradient is no scatter into another (B, T, V).
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    hit = jnp.sum(logits >= jax.lax.stop_gradient(target_logit)[..., None], axis=-1) == 1
    return log_z - target_logit, log_z, hit


def cross_entropy_sums(
    logits: Float[Array, "*batch V"], targets: Int[Array, "*batch"], weights: Shaped[Array, "*batch"]
) -> Sums:
    """The sums of a batch in which each target counts by its weight; 0 masks it out."""
    nll, log_z, hit = cross_entropy(logits, targets)
    weights = weights.astype(jnp.float32)
    return Sums(
        loss=jnp.sum(weights * nll),
        z_loss=jnp.sum(weights * jnp.square(log_z)),
        hits=jnp.sum(weights * hit),
        weight=jnp.sum(weights),
        tokens=jnp.sum(weights > 0, dtype=jnp.int32),
    )
