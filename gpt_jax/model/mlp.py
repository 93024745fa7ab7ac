"""The MLP of a block, plain or gated, applied at each position."""

from __future__ import annotations

import math
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


class Xielu(nn.Module):
    """The xIELU activation: α_p · x² + x/2 where x > 0, α_n · (eˣ − 1 − x) + x/2 elsewhere, with learned α_p > 0 and
    α_n > 1/2 (Huang & Schlag 2024, arXiv:2411.13010).
    """

    param_dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
        beta, start = 0.5, 0.8

        def softplus(name: str, value: float) -> Array:
            initial = nn.initializers.constant(math.log(math.expm1(value)))
            return jax.nn.softplus(self.param(name, initial, (), jnp.dtype(self.param_dtype))).astype(x.dtype)

        positive, negative = softplus("alpha_p", start), beta + softplus("alpha_n", start - beta)
        below = jnp.minimum(x, -1e-6)  # keeps the branch not taken, and so its gradient, finite
        return jnp.where(x > 0, positive * x * x, negative * (jnp.expm1(below) - x)) + beta * x


class Mlp(nn.Module):
    """x (B, T, C) → down(activation(up(x))), or down(activation(gate(x)) · up(x)) for a GatedMlp; F hidden units."""

    config: cfg.Mlp | cfg.GatedMlp
    model: cfg.ModelConfig
    output_scale: float

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        c, std, dtype = self.config, self.model.init.kernel_std, self.model.param_dtype
        activation = Xielu(dtype, name="xielu") if c.activation == "xielu" else ACTIVATIONS[c.activation]
        up = tap(self, "up", Linear(c.width, c.bias, std, dtype, name="up")(x))
        if isinstance(c, cfg.GatedMlp):
            hidden = activation(tap(self, "gate", Linear(c.width, c.bias, std, dtype, name="gate")(x))) * up
        else:
            hidden = activation(up)
        return Linear(x.shape[-1], c.bias, std, dtype, self.output_scale, name="down")(tap(self, "hidden", hidden))
