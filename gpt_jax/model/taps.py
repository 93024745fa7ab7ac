"""Taps: named values inside the model, which a call of the model reads with `capture` and changes with `edit`.

A module taps a value with `value = tap(self, "name", value)`; its full name is the path of the module and that name,
such as `blocks/3/attention/queries`. While a call is traced, its `Taps` are the context in which the modules run. A
call without `capture` and `edit` has none, and compiles the same program as a model without taps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from gpt_jax.config.errors import UserError, nearest
from gpt_jax.model.paths import matches

Edit = Callable[[Array], Array]


class Taps:
    """The values that one call captures, as globs over names, and its edits, glob → function of the value."""

    def __init__(self, capture: Sequence[str], edit: Mapping[str, Edit], root: tuple[str, ...]) -> None:
        self._capture, self._edit, self._root = tuple(capture), dict(edit), root
        self._layers: tuple[int, ...] | None = None  # those that the block being traced stands for; None outside
        self._layer: Any = None  # which of them it is, traced in a scan
        self._taken: dict[str, Array] = {}
        self._names: dict[str, None] = {}  # of every tap that was passed, in order

    def names(self, path: str) -> list[str]:
        """The full names of the tap `path`: one, or in a block one for each layer that it stands for."""
        return [path] if self._layers is None else [f"blocks/{layer}/{path}" for layer in self._layers]

    def path(self, module: nn.Module, name: str) -> str:
        """The path of a tap of `module`, relative to the model or, inside a block, to the block."""
        path = module.path if self._layers is not None else module.path[len(self._root) :]
        return "/".join((*path, name))

    def captures(self, path: str) -> bool:
        return any(matches(name, self._capture) for name in self.names(path))

    def edits(self, path: str) -> bool:
        return any(matches(name, self._edit) for name in self.names(path))

    def visit(self, path: str, value: Array) -> Array:
        """`value` after the edits of this tap, which is what is captured."""
        names = self.names(path)
        self._names |= dict.fromkeys(names)
        for glob, function in self._edit.items():
            is_edited = [matches(name, [glob]) for name in names]
            if any(is_edited):
                value = self._edited(names, is_edited, function, value)
        if self.captures(path):
            self._taken[path] = value
        return value

    def _edited(self, names: list[str], is_edited: list[bool], function: Edit, value: Array) -> Array:
        new = jnp.asarray(function(value))
        if (new.shape, new.dtype) != (value.shape, value.dtype):
            raise UserError(
                f"the edit of {names[is_edited.index(True)]} returned {new.dtype}{list(new.shape)}: it must return"
                f" {value.dtype}{list(value.shape)}, as it was given"
            )
        if all(is_edited):
            return new
        assert self._layers is not None
        here = [layer for layer, is_hit in zip(self._layers, is_edited, strict=True) if is_hit]
        return jnp.where(jnp.any(self._layer == jnp.asarray(here)), new, value)

    @contextmanager
    def block(self, layers: tuple[int, ...], layer: Any) -> Iterator[dict[str, Array]]:
        """Traces a block that stands for `layers`; `layer` is which of them. Yields the values captured in it, by their
        paths in the block.
        """
        outside = self._taken
        self._layers, self._layer, self._taken = layers, layer, {}
        try:
            yield self._taken
        finally:
            self._layers, self._layer, self._taken = None, None, outside

    def add(self, layer: int, taken: Mapping[str, Array]) -> None:
        """Adds what a block has captured for `layer`; other layers of a scan may have asked for more."""
        named = {f"blocks/{layer}/{path}": value for path, value in taken.items()}
        self._taken |= {name: value for name, value in named.items() if matches(name, self._capture)}

    def captured(self) -> dict[str, Array]:
        """Name → value, in the order of the model.

        Raises:
          UserError: a glob of `capture` or `edit` matches no tap of this model.
        """
        for what, globs in (("capture", self._capture), ("edit", tuple(self._edit))):
            for glob in globs:
                if not any(matches(name, [glob]) for name in self._names):
                    raise UserError(f'{what}="{glob}" matches nothing{nearest(glob, self._names)}')
        return {name: self._taken[name] for name in self._names if name in self._taken}


_TAPS: ContextVar[Taps | None] = ContextVar("taps", default=None)


_HEADS_FIRST: ContextVar[set[str] | None] = ContextVar("heads_first", default=None)


@contextmanager
def noting_heads_first() -> Iterator[set[str]]:
    """Yields a set that gets the names of the taps whose heads come before their positions, of calls traced in it."""
    noted: set[str] = set()
    token = _HEADS_FIRST.set(noted)
    try:
        yield noted
    finally:
        _HEADS_FIRST.reset(token)


@contextmanager
def tapping(
    module: nn.Module, capture: str | Sequence[str] | None, edit: Mapping[str, Edit] | None
) -> Iterator[Taps | None]:
    """The taps of one call of the model `module`; None if it neither captures nor edits."""
    globs = (capture,) if isinstance(capture, str) else tuple(capture or ())
    taps = Taps(globs, edit or {}, module.path) if globs or edit else None
    token = _TAPS.set(taps)
    try:
        yield taps
    finally:
        _TAPS.reset(token)


@contextmanager
def without() -> Iterator[None]:
    """Modules that are traced for their shapes alone tap nothing."""
    token = _TAPS.set(None)
    try:
        yield
    finally:
        _TAPS.reset(token)


@contextmanager
def in_block(layers: tuple[int, ...], layer: Any) -> Iterator[dict[str, Array]]:
    """`Taps.block` of the call that is being traced; an empty dict if it has no taps."""
    taps = _TAPS.get()
    if taps is None:
        yield {}
    else:
        with taps.block(layers, layer) as taken:
            yield taken


def add(layer: int, taken: Mapping[str, Array]) -> None:
    """`Taps.add` of the call that is being traced."""
    if (taps := _TAPS.get()) is not None:
        taps.add(layer, taken)


def tap(module: nn.Module, name: str, value: Array, *, heads_first: bool = False) -> Array:
    """The value to go on with: `value`, or what the call's edit of `<path of module>/<name>` makes of it.

    Axes are (B, T, …), with heads after the positions where there are some, or, `heads_first`, (B, H, T, …).
    """
    taps = _TAPS.get()
    if taps is None:
        return value
    path = taps.path(module, name)
    if heads_first and (noted := _HEADS_FIRST.get()) is not None:
        noted.update(taps.names(path))
    return taps.visit(path, value)


def is_captured(module: nn.Module, *names: str) -> bool:
    """Whether this call captures one of these taps of `module`; guards what is computed for a tap alone."""
    taps = _TAPS.get()
    return taps is not None and any(taps.captures(taps.path(module, name)) for name in names)


def is_edited(module: nn.Module, *names: str) -> bool:
    """Whether this call edits one of these taps of `module`."""
    taps = _TAPS.get()
    return taps is not None and any(taps.edits(taps.path(module, name)) for name in names)
