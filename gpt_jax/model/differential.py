"""Differential attention: what two attention maps have in common cancels out (Ye et al. 2024, arXiv:2410.05258)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax import config as cfg
from gpt_jax.model.attention import MultiHeadAttention, attended
from gpt_jax.model.mask import Side, keys_per_query
from gpt_jax.model.norm import make_norm
from gpt_jax.model.parameter import Parameter
from gpt_jax.model.row import Row


class DifferentialAttention(MultiHeadAttention):
    """Head h < H/2 computes norm(A_h V − λ·A_{h+H/2} V)·(1 − λ₀), where V (B, S, 2E) are the values of both heads.

    λ = exp(λ_q1·λ_k1) − exp(λ_q2·λ_k2) + λ₀, with λ₀ = 0.8 − 0.6·exp(−0.3·layer).
    """

    config: cfg.Differential

    def attend(
        self,
        query: Float[Array, "B H T D"],
        key: Float[Array, "B K S D"],
        value: Float[Array, "B K S E"],
        queries: Side,
        keys: Side,
        row: Row,
        train: bool,
    ) -> Float[Array, "B H T E"]:
        (B, H, T, D), E = query.shape, value.shape[-1]
        both = jnp.concatenate(jnp.split(value, 2, axis=1), axis=-1)
        both = jnp.concatenate([both, both], axis=1)
        first, second = jnp.split(attended(self, self.config, query, key, both, queries, keys, row, train), 2, axis=1)

        def exponent(n: int) -> Float[Array, ""]:
            pair = [
                Parameter("vector", nn.initializers.normal(0.1), (D,), self.model.param_dtype, name=f"lambda_{side}{n}")
                for side in ("query", "key")
            ]
            return jnp.exp(jnp.sum(pair[0]().astype(jnp.float32) * pair[1]().astype(jnp.float32)))

        base = 0.8 - 0.6 * jnp.exp(-0.3 * jnp.asarray(row.layer, jnp.float32))
        weight = (exponent(1) - exponent(2) + base).astype(value.dtype)
        norm = make_norm(self.config.norm, self.model.param_dtype, name="head_norm")
        out = norm(first - weight * second) * (1 - base).astype(value.dtype)  # (B, H/2, T, 2E)
        return out.reshape(B, H // 2, T, 2, E).swapaxes(2, 3).reshape(B, H, T, E)

    @staticmethod
    def mixing_flops(config: cfg.Attention, model: cfg.ModelConfig, context: int) -> int:
        """Those of plain attention with values of twice the width."""
        C = model.width
        widths = config.resolved_head_width(C) + 2 * config.resolved_value_width(C)
        return round(2 * config.heads * widths * keys_per_query(config.mask, context))
