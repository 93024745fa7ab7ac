"""The mean of all values so far: positions mixed without attention (Zhang et al. 2018, arXiv:1805.00631)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax import config as cfg
from gpt_jax.model.linear import Linear
from gpt_jax.model.linear_attention import linear_attention
from gpt_jax.model.mixer import CacheShapes, Carry, Mixer, zeros
from gpt_jax.model.recurrence import non_padding
from gpt_jax.model.row import Row
from gpt_jax.model.slots import LayerCache, part, write
from gpt_jax.model.taps import tap


class AverageAttention(Mixer):
    """x (B, T, C) → values (B, T, E) → their mean from the start of the document to each token → (B, T, C)."""

    config: cfg.Average

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T C"], row: Row, cache: LayerCache | None, shared: Carry, train: bool
    ) -> tuple[Float[Array, "B T C"], LayerCache | None, Carry]:
        (B, T, C), std, dtype = x.shape, self.model.init.kernel_std, self.model.param_dtype
        value = Linear(self.config.value_width, False, std, dtype, name="value")(x)
        value = tap(self, "values", value)
        if (kept := non_padding(row)) is not None:
            value = jnp.where(kept[..., None], value, 0)
        one = zeros((B, 1, T, 1), jnp.float32) + 1  # a sum is linear attention whose queries and keys are 1
        past = part(cache, "state")
        total, state = linear_attention(one, one, value[:, None], segments=row.segments, state=past)
        mean = (total / (row.positions + 1)[:, None, :, None]).astype(x.dtype)
        mean = tap(self, "heads", mean, heads_first=True)[:, 0]
        y = Linear(C, False, std, dtype, self.output_scale, name="output")(mean)
        state = {"state": tap(self, "state", state["state"], heads_first=True)}
        return y, write(cache, **state), shared

    @staticmethod
    def cache_shapes(config: cfg.Average, model: cfg.ModelConfig, length: int) -> CacheShapes:
        return {"state": jax.ShapeDtypeStruct((1, 1, config.value_width), jnp.float32)}

    @staticmethod
    def mixing_flops(config: cfg.Average, model: cfg.ModelConfig, context: int) -> int:
        """One addition for each element."""
        return config.value_width
