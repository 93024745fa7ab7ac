"""What a model's taps are called, and reading them from a compiled call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from gpt_jax.model.gpt import GPT
from gpt_jax.model.taps import Edit


def tap_shapes(model: GPT, params: Any, tokens: Int[Array, "B T"], **options: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Name → shape and dtype of every value that `capture` can read in `model.apply(params, tokens, **options)`, in the
    order of the model. Computes nothing.
    """
    call = _Call(partial(model.apply, capture="**", **options))
    shapes = jax.eval_shape(call, params, tokens)
    return {name: shapes[name] for name in call.order}


def read(
    model: GPT,
    params: Any,
    tokens: Int[Array, "B T"],
    capture: str | Sequence[str],
    edit: Mapping[str, Edit] | None = None,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Name → value of the taps that the globs `capture` match, in the order of the model, from one compiled call with
    the edits `edit`.

    Raises:
      UserError: as `GPT`.
    """
    call = _Call(partial(model.apply, capture=capture, edit=edit, **options))
    values = jax.device_get(jax.jit(call)(params, tokens))
    return {name: np.asarray(values[name]) for name in call.order}


class _Call:
    """A call of the model that returns what it captures; `order` keeps the names in order, which JAX sorts."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self.order: list[str] = []

    def __call__(self, params: Any, tokens: Array) -> dict[str, Array]:
        captured = self._call(params, tokens)[-1]
        self.order = list(captured)
        return captured
