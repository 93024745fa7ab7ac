"""Taps: named values inside the model that a caller can ask for with `capture`. Without `capture`, they add nothing to
the compiled program.
"""

from __future__ import annotations

from typing import Any

from flax import linen as nn
from flax import traverse_util
from jax import Array

COLLECTION = "intermediates"


def tap(module: nn.Module, name: str, value: Array) -> Array:
    """Makes `value` available to `capture` as `<path of module>/<name>`, and returns it."""
    module.sow(COLLECTION, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return value


def is_tapped(module: nn.Module) -> bool:
    """Whether this call captures taps; guards what is computed for a tap alone."""
    return module.is_mutable_collection(COLLECTION)


def tapped(variables: Any, prefix: str) -> dict[str, Array]:
    """The values tapped in one `apply`, as `<prefix>/<path>` → value."""
    if COLLECTION not in variables:
        return {}
    flat = traverse_util.flatten_dict(variables[COLLECTION], sep="/")
    return {f"{prefix}/{path}": value for path, value in flat.items()}
