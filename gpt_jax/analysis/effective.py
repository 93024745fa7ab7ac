"""Effective attention: how much of each token's values each head's output holds, for mixers with and without scores.

The output of a head before its norm is linear in the values, once queries, keys, gates and decays are given: in softmax
attention, and as much in linear, delta and latent attention. So its weights exist exactly, and are read off by giving
the values a basis: a value vector has E channels, so one call of the model reads the weights of E tokens.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gpt_jax.analysis.capture import tap_shapes
from gpt_jax.config import Differential
from gpt_jax.config.errors import UserError
from gpt_jax.model.gpt import GPT


def effective_attention(
    model: GPT, params: Any, tokens: Int[Array, "B T"], layer: int, **options: Any
) -> Float[np.ndarray, "B H T T"]:
    """Weights w with heads[b, h, t] = Σ_s w[b, h, t, s] · values[b, s, h], of the given layer.

    Of softmax attention they are the probabilities. Of linear, delta and average attention they may be negative, and a
    row need not sum to 1. `options` are those of `model.apply`, such as `segments`.

    Raises:
      UserError: there is no such layer, it reads the values of another one, or its heads are not linear in its values
        (differential attention, whose heads are normalized).
    """
    if not 0 <= layer < model.config.layers:
        raise UserError(f"there is no layer {layer}: the model has {model.config.layers}")
    attention = model.config.blocks[layer].attention
    if isinstance(attention, Differential):
        raise UserError("heads of differential attention are normalized, so no sums of values: read its probabilities")
    place = f"blocks/{layer}/attention"
    shapes = tap_shapes(model, params, tokens, **options)
    if f"{place}/values" not in shapes:
        raise UserError(f"layer {layer} makes no values of its own: choose the layer that it shares them with")
    values, heads = shapes[f"{place}/values"], shapes[f"{place}/heads"]
    T, E = tokens.shape[1], values.shape[-1]

    @jax.jit
    def weights_of(params: Any, first: Array) -> Float[Array, "B H T E"]:
        """The weights of E tokens from `first` on."""
        basis = (jnp.arange(T)[:, None] == first + jnp.arange(E)).astype(values.dtype)  # (T, E)

        def unit(value: Array) -> Array:
            return jnp.broadcast_to(basis[:, None] if value.ndim == 4 else basis, value.shape)

        result: Any = model.apply(params, tokens, capture=f"{place}/heads", edit={f"{place}/values": unit}, **options)
        return result[-1][f"{place}/heads"]

    parts = [np.asarray(weights_of(params, jnp.int32(first))) for first in range(0, T, E)]
    return np.concatenate(parts, axis=-1)[..., :T].reshape(*heads.shape[:3], T)
