"""What a model's taps are called, and reading them from a compiled call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Int

from gpt_jax.model.gpt import GPT
from gpt_jax.model.taps import Edit, noting_heads_first
from gpt_jax.training.sharding import replicated, traced_under

Settings = tuple[tuple[str, Any], ...]


def tap_shapes(model: GPT, params: Any, tokens: Int[Array, "B T"], **options: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Name → shape and dtype of every value that `capture` can read in `model.apply(params, tokens, **options)`, in the
    order of the model. Computes nothing.
    """
    settings, given = split_options(options)
    named = jax.eval_shape(partial(_named, model, ("**",), settings, None), params, tokens, given)
    return dict(zip(named.names, named.values, strict=True))


def read(
    model: GPT,
    params: Any,
    tokens: Int[Array, "B T"],
    capture: str | Sequence[str],
    edit: Mapping[str, Edit] | None = None,
    *,
    mesh: Mesh | None = None,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Name → value of the taps that the globs `capture` match, in the order of the model, from one compiled call with
    the edits `edit`. Calls of one model that ask for the same names share a program, unless they edit.

    Args:
      mesh: the mesh that `params` are divided over (None: one device).

    Raises:
      UserError: as `GPT`.
    """
    settings, given = split_options(options)
    globs = (capture,) if isinstance(capture, str) else tuple(capture)
    program = (_shared if edit is None else _compiled)(model, globs, settings, edit, mesh)
    named = jax.device_get(program(params, tokens, given))
    return {name: np.asarray(value) for name, value in zip(named.names, named.values, strict=True)}


def heads_first(model: GPT, params: Any, tokens: Int[Array, "B T"], **options: Any) -> frozenset[str]:
    """The names of the taps with axes (B, H, T, …); those of all others are (B, T, …), with heads third where a value
    has four axes.
    """
    with noting_heads_first() as noted:
        tap_shapes(model, params, tokens, **options)
    return frozenset(noted)


def split_options(options: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """The options of `model.apply` that decide its program, and those that are values of a call: arrays."""
    is_value = {name: _has_arrays(option) for name, option in options.items()}
    settings = tuple(sorted((name, option) for name, option in options.items() if not is_value[name]))
    return settings, {name: option for name, option in options.items() if is_value[name]}


def _has_arrays(option: Any) -> bool:
    return any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(option))


def compile_on(mesh: Mesh | None, function: Any) -> Any:
    """`function` compiled; on a mesh, each device has a copy of what it returns."""
    return jax.jit(function) if mesh is None else jax.jit(traced_under(mesh, function), out_shardings=replicated(mesh))


@struct.dataclass
class _Named:
    """Captured values in the order of the model. A dict's keys would be sorted."""

    names: tuple[str, ...] = struct.field(pytree_node=False)
    values: Any = ()  # a tuple of arrays, or of their shapes


def _compiled(
    model: GPT, capture: tuple[str, ...], settings: Settings, edit: Mapping[str, Edit] | None, mesh: Mesh | None
) -> Any:
    return compile_on(mesh, partial(_named, model, capture, settings, edit))


_shared = lru_cache(maxsize=64)(_compiled)


def _named(
    model: GPT,
    capture: tuple[str, ...],
    settings: Settings,
    edit: Mapping[str, Edit] | None,
    params: Any,
    tokens: Array,
    given: Mapping[str, Any],
) -> _Named:
    result: Any = model.apply(params, tokens, capture=capture, edit=edit, **dict(settings), **given)
    return _Named(tuple(result[-1]), tuple(result[-1].values()))
