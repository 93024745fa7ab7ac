"""Token ids to vectors, with an optional position code added."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg
from gpt_jax.config.errors import ConfigError
from gpt_jax.model.norm import make_norm
from gpt_jax.model.position import LearnedPosition, sinusoidal_position


class TokenEmbedding(nn.Module):
    """tokens (B, T) → x (B, T, C): rows of a table (V, C), scaled, plus the code of their positions, then a norm."""

    config: cfg.ModelConfig

    def setup(self) -> None:
        c, init = self.config, self.config.init
        self.table = self.param(
            "table", nn.initializers.normal(init.embedding_std), (c.vocab_size, c.width), jnp.dtype(c.param_dtype)
        )
        if isinstance(code := c.embedding.position, cfg.Learned):
            length = cfg.learned_positions(c)
            assert length is not None
            self.position = LearnedPosition(length, c.width, init.embedding_std, c.param_dtype, code.offset)
        self.norm = make_norm(c.embedding.norm, c.param_dtype)
        self.dropout = nn.Dropout(c.embedding.dropout)

    def __call__(self, tokens: Int[Array, "B T"], positions: Int[Array, "b T"], train: bool) -> Float[Array, "B T C"]:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        x = jnp.take(self.table, tokens, axis=0).astype(dtype)
        if c.embedding.scale is not None:
            x *= jnp.asarray(c.embedding.scale, dtype)
        match c.embedding.position:
            case cfg.Learned():
                x += self.position(positions).astype(dtype)
            case cfg.Sinusoidal() as sines:
                x += sinusoidal_position(positions, c.width, sines).astype(dtype)
            case None:
                pass
            case other:
                raise ConfigError(
                    f"TokenEmbedding has no position code {type(other).__name__}: choose Learned, Sinusoidal or None"
                )
        return self.dropout(self.norm(x), deterministic=not train)
