"""How many bytes each layer keeps of a text while it grows, from the shapes of the model's own cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from gpt_jax.config import ModelConfig
from gpt_jax.model.cache import init_cache


@dataclass(frozen=True)
class CacheEntry:
    """What one layer keeps under one name.

    `kind` is "slots", one for each token; "ring", one for each of the last `slots` tokens; or "state", whose size does
    not grow (`slots` is 0). `shape` is that of the last step, `bytes` the size at each step, `most` that of a full
    context. A layer that reads another one's cache has no entry.
    """

    layer: int
    name: str
    kind: str
    slots: int
    shape: tuple[int, ...]
    bytes: tuple[int, ...]
    most: int


def cache_entries(model: ModelConfig, lengths: Sequence[int]) -> tuple[CacheEntry, ...]:
    """The entries of every layer, for one row of each of `lengths` tokens in turn."""
    shapes = {length: _shapes(model, length) for length in {1, model.context_length, *lengths}}
    one, most = shapes[1], shapes[model.context_length]
    entries = []
    for layer, names in enumerate(most):
        for name in names:
            small, large = one[layer][name].shape, most[layer][name].shape
            grown = [size for before, size in zip(small, large, strict=True) if before != size]
            kind = "state" if not grown else "ring" if grown[0] < model.context_length else "slots"
            last = shapes[lengths[-1]][layer][name]
            sizes = tuple(_bytes(shapes[length][layer][name]) for length in lengths)
            slots = grown[0] if grown else 0
            entries.append(CacheEntry(layer, name, kind, slots, last.shape[1:], sizes, _bytes(most[layer][name])))
    return tuple(entries)


def _shapes(model: ModelConfig, length: int) -> Any:
    return jax.eval_shape(partial(init_cache, model, 1, length)).layers


def _bytes(shape: Any) -> int:
    return int(np.prod(shape.shape)) * np.dtype(shape.dtype).itemsize
