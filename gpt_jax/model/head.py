"""Hidden vectors to logits over the vocabulary."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg
from gpt_jax.model.placement import flattened


class LmHead(nn.Module):
    """hidden (B, T, C) → logits (B, T, V) in float32, through a kernel (C, V) of its own or, if tied, the transposed
    embedding table (V, C).
    """

    config: cfg.ModelConfig

    def setup(self) -> None:
        c, head, dtype = self.config, self.config.head, jnp.dtype(self.config.param_dtype)
        if not head.tied:
            shape = (c.width, c.vocab_size)
            self.kernel = self.param("kernel", nn.initializers.normal(c.init.head_std), shape, dtype)
        if head.bias:
            self.bias = self.param("bias", nn.initializers.zeros, (c.vocab_size,), dtype)

    def __call__(self, hidden: Float[Array, "B T C"], table: Float[Array, "V C"] | None) -> Float[Array, "B T V"]:
        x = flattened(hidden)
        logits = jnp.dot(x, self._kernel(table).astype(x.dtype), preferred_element_type=jnp.float32)
        return self._adjusted(logits, slice(None)).reshape(*hidden.shape[:-1], -1)

    def of(
        self, hidden: Float[Array, "B T C"], table: Float[Array, "V C"] | None, ids: Int[Array, "B T"]
    ) -> Float[Array, "B T"]:
        """The logit of one token id at each position."""
        kernels = jnp.take(self._kernel(table), ids, axis=1).astype(hidden.dtype)
        logits = jnp.einsum("btc,cbt->bt", hidden, kernels, preferred_element_type=jnp.float32)
        return self._adjusted(logits, ids)

    def _kernel(self, table: Float[Array, "V C"] | None) -> Float[Array, "C V"]:
        if not self.config.head.tied:
            return self.kernel
        assert table is not None
        return table.T

    def _adjusted(self, logits: Float[Array, "*batch"], ids: Any) -> Float[Array, "*batch"]:
        """`logits` of these token ids with bias, scale and softcap."""
        head = self.config.head
        if head.bias:
            logits += self.bias[ids]
        if head.scale is not None:
            logits *= head.scale
        return logits if head.softcap is None else head.softcap * jnp.tanh(logits / head.softcap)
