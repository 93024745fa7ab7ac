"""Edits of tapped values, for `model.apply(..., edit={glob: edit})`: pure functions of the value.

    model.apply(params, tokens, edit={"blocks/3/attention/heads": at(zero, heads=5, heads_first=True)})  # a head
    model.apply(params, tokens, edit={"blocks/6/mlp_residual": add(4.0 * direction)})       # steers
    model.apply(params, tokens, edit={"blocks/6/mlp_residual": at(replace(other), positions=-1)})  # patches

Of the tapped values, `heads`, `scores`, `logits` and `probabilities` have axes (B, H, T, …), `queries`, `keys`,
`values`, `gate` and `by_head` (B, T, H, …); residual streams, changes and hidden units have no heads: (B, T, …).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from gpt_jax.config.errors import UserError
from gpt_jax.model.gpt import GPT
from gpt_jax.model.taps import Edit

Index = int | Sequence[int] | slice
EVERY = slice(None)


class Edited(GPT):
    """A model all of whose calls have these edits, glob and edit each; see `edited`."""

    edits: tuple[tuple[str, Edit], ...] = ()

    def _run(
        self,
        tokens: Int[Array, "B T"],
        to_logits: bool,
        *,
        edit: Mapping[str, Edit] | None = None,
        **options: Any,
    ) -> Any:
        return super()._run(tokens, to_logits, edit={**dict(self.edits), **(edit or {})}, **options)


def edited(model: GPT, edit: Mapping[str, Edit]) -> GPT:
    """The model with edits that every call of it makes, for `generate` and all else that takes a model; its parameters
    are those of `model`.

    Edits are of every position: while text is generated, a call has one token, whose position in it is always 0. One
    that reads what changes later keeps what it read when the model was compiled. `logits` are no tap.

    Raises:
      UserError: an edit is `at` some positions.
    """
    for glob, one in edit.items():
        if not _is_every(getattr(one, "positions", EVERY)):
            raise UserError(
                f'the edit of "{glob}" is of some positions, which move while a model generates: leave them out, or '
                "give the edit to model.apply"
            )
    return Edited(model.config, edits=tuple(edit.items()))


def zero(value: Array) -> Array:
    """Replaces the value by zeros."""
    return jnp.zeros_like(value)


def mean(value: Array) -> Array:
    """Replaces the value by its mean over rows and positions, of a value whose first two axes they are (mean ablation:
    Wang et al. 2022, arXiv:2211.00593).
    """
    return jnp.broadcast_to(value.mean((0, 1), keepdims=True), value.shape)


def scale(factor: Any) -> Edit:
    """Multiplies the value."""
    return lambda value: (value * factor).astype(value.dtype)


def add(vector: Any) -> Edit:
    """Adds a vector (C,), or anything that broadcasts to the value (activation addition: Turner et al. 2023,
    arXiv:2308.10248).
    """
    return lambda value: (value + vector).astype(value.dtype)


def replace(new: Any) -> Edit:
    """Replaces the value by `new`, which broadcasts to it: a constant, or what another run has captured (activation
    patching: Meng et al. 2022, arXiv:2202.05262).
    """
    return lambda value: jnp.broadcast_to(jnp.asarray(new, value.dtype), value.shape)


def at(
    edit: Edit, *, heads: Index = EVERY, positions: Index = EVERY, units: Index = EVERY, heads_first: bool = False
) -> Edit:
    """Edits some heads, positions and units (indices of the last axis) alone; the others keep their values.

    Args:
      heads_first: the value is (B, H, T, …), as `heads` and `probabilities` are, not (B, T, H, …).
    """
    first, second = (heads, positions) if heads_first else (positions, heads)

    def edited(value: Array) -> Array:
        if value.ndim < 4 and not _is_every(heads):
            raise UserError(f"a value of shape {list(value.shape)} has no heads: choose positions or units")
        mask = _mask(value, 1, first if value.ndim > 3 else positions)
        mask &= _mask(value, 2, second) if value.ndim > 3 else True
        return jnp.where(mask & _mask(value, value.ndim - 1, units), edit(value), value)

    edited.positions = positions  # type: ignore[attr-defined]
    return edited


def _is_every(index: Index) -> bool:
    return isinstance(index, slice) and index == EVERY


def _mask(value: Array, axis: int, index: Index) -> Array:
    """Which entries along `axis` the index names, broadcastable to the value."""
    size = value.shape[axis]
    chosen = [index] if isinstance(index, int) else index
    if not isinstance(chosen, slice) and any(not -size <= i < size for i in chosen):
        raise UserError(f"there is no index {list(chosen)} along axis {axis} of a value of shape {list(value.shape)}")
    mask = jnp.zeros(size, bool).at[chosen if isinstance(chosen, slice) else jnp.asarray(chosen)].set(True)
    return mask.reshape(*(size if i == axis else 1 for i in range(value.ndim)))
