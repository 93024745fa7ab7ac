"""Hidden vectors to logits over the vocabulary."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax import config as cfg
from gpt_jax.model.placement import flattened


class LmHead(nn.Module):
    """hidden (B, T, C) → logits (B, T, V) in float32, through a kernel (C, V) of its own or, if tied, the transposed
    embedding table (V, C).
    """

    config: cfg.ModelConfig

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T C"], table: Float[Array, "V C"] | None) -> Float[Array, "B T V"]:
        c, head = self.config, self.config.head
        if head.tied:
            assert table is not None
            kernel = table.T
        else:
            shape = (c.width, c.vocab_size)
            kernel = self.param("kernel", nn.initializers.normal(c.init.head_std), shape, jnp.dtype(c.param_dtype))
        x = flattened(hidden)
        logits = jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        if head.bias:
            logits += self.param("bias", nn.initializers.zeros, (c.vocab_size,), jnp.dtype(c.param_dtype))
        if head.scale is not None:
            logits *= head.scale
        if head.softcap is not None:
            logits = head.softcap * jnp.tanh(logits / head.softcap)
        return logits.reshape(*hidden.shape[:-1], c.vocab_size)
