"""Effective attention: how much of each token's values each head's output holds, for mixers with and without scores.

The output of a head before its norm is linear in the values, once queries, keys, gates and decays are given: in softmax
attention, and as much in linear, delta and latent attention. So its weights exist exactly, and are read off by giving
the values a basis: a value vector has E channels, so one call of the model reads the weights of E tokens.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from gpt_jax.analysis.capture import Settings, compile_on, split_options, tap_shapes
from gpt_jax.config import Differential
from gpt_jax.config.errors import UserError
from gpt_jax.model.gpt import GPT


def effective_attention(
    model: GPT, params: Any, tokens: Int[Array, "B T"], layer: int, *, mesh: Mesh | None = None, **options: Any
) -> Float[np.ndarray, "B H T T"]:
    """Weights w with heads[b, h, t] = Σ_s w[b, h, t, s] · values[b, s, h], of the given layer.

    Of softmax attention they are the probabilities. Of linear, delta and average attention they may be negative, and a
    row need not sum to 1. `options` are those of `model.apply`, such as `segments`; `mesh` is that of `read`. Calls of
    one model and layer share a program.

    Raises:
      UserError: there is no such layer, it reads the values of another one, or its heads are not linear in its values
        (differential attention, whose heads are normalized).
    """
    if not 0 <= layer < model.config.layers:
        raise UserError(f"there is no layer {layer}: the model has {model.config.layers}")
    attention = model.config.blocks[layer].attention
    if isinstance(attention, Differential):
        raise UserError("heads of differential attention are normalized, so no sums of values: read its probabilities")
    shapes = tap_shapes(model, params, tokens, **options)
    if f"blocks/{layer}/attention/values" not in shapes:
        raise UserError(f"layer {layer} makes no values of its own: choose the layer that it shares them with")
    T, E = tokens.shape[1], shapes[f"blocks/{layer}/attention/values"].shape[-1]
    settings, given = split_options(options)
    weights_of = _weights(model, layer, settings, mesh)
    parts = [np.asarray(weights_of(params, tokens, given, np.int32(first))) for first in range(0, T, E)]
    return np.concatenate(parts, axis=-1)[..., :T]


@lru_cache(maxsize=64)
def _weights(model: GPT, layer: int, settings: Settings, mesh: Mesh | None) -> Any:
    """The compiled weights (B, H, T, E) of E tokens from a `first` one on."""
    place = f"blocks/{layer}/attention"

    def weights_of(params: Any, tokens: Array, given: Any, first: Array) -> Float[Array, "B H T E"]:
        def unit(value: Array) -> Array:
            T, E = value.shape[1], value.shape[-1]
            basis = (jnp.arange(T)[:, None] == first + jnp.arange(E)).astype(value.dtype)  # (T, E)
            return jnp.broadcast_to(basis[:, None] if value.ndim == 4 else basis, value.shape)

        edit = {f"{place}/values": unit}
        result: Any = model.apply(params, tokens, capture=f"{place}/heads", edit=edit, **dict(settings), **given)
        heads: Array = result[-1][f"{place}/heads"]
        return heads

    return compile_on(mesh, weights_of)
