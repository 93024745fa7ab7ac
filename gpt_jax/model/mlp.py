"""The MLP of a block, plain or gated: each position by itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax import config as cfg
from gpt_jax.model.linear import Linear
from gpt_jax.model.taps import tap

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "silu": jax.nn.silu,
}


class Mlp(nn.Module):
    """down(activation(up(x))), or down(activation(gate(x)) · up(x)) for a GatedMlp."""

    config: cfg.Mlp | cfg.GatedMlp
    model: cfg.ModelConfig
    output_scale: float

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        c, std, dtype = self.config, self.model.init.kernel_std, self.model.param_dtype
        activation = ACTIVATIONS[c.activation]
        up = Linear(c.width, c.bias, std, dtype, name="up")(x)
        if isinstance(c, cfg.GatedMlp):
            hidden = activation(Linear(c.width, c.bias, std, dtype, name="gate")(x)) * up
        else:
            hidden = activation(up)
        return Linear(x.shape[-1], c.bias, std, dtype, self.output_scale, name="down")(tap(self, "hidden", hidden))
