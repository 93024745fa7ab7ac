"""What a model's taps are called, and reading them from a compiled call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from gpt_jax.model.gpt import GPT
from gpt_jax.model.taps import Edit


def tap_shapes(model: GPT, params: Any, tokens: Int[Array, "B T"], **options: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Name → shape and dtype of every value that `capture` can read in `model.apply(params, tokens, **options)`.
    Computes nothing.
    """
    return jax.eval_shape(partial(model.apply, capture="**", **options), params, tokens)[-1]


def read(
    model: GPT,
    params: Any,
    tokens: Int[Array, "B T"],
    capture: str | Sequence[str],
    edit: Mapping[str, Edit] | None = None,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Name → value of the taps that the globs `capture` match, from one compiled call with the edits `edit`.

    Raises:
      UserError: as `GPT`.
    """
    call = jax.jit(partial(model.apply, capture=capture, edit=edit, **options))
    return {name: np.asarray(value) for name, value in jax.device_get(call(params, tokens)[-1]).items()}
