"""Merging adapters into the kernels that they adapt."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax.model.adapter import SCOPE, without_adapter
from gpt_jax.model.gpt import GPT


def merge_adapter(model: GPT, params: Any) -> tuple[GPT, Any]:
    """An equivalent model without adapters, and its parameters: each kernel W becomes W + (alpha / rank) · A @ B.

    A model without an adapter is returned unchanged. Parameters may be per layer or stacked.
    """
    if without_adapter(model.config) == model.config:
        return model, params
    blocks = {
        name: _merged(layer, model.config.blocks[int(name.split(":")[0])].adapter)
        for name, layer in params["params"]["blocks"].items()
    }
    merged = {**params, "params": {**params["params"], "blocks": blocks}}
    return GPT(without_adapter(model.config)), merged


def _merged(tree: Any, adapter: Any) -> Any:
    """A layer's parameters, or a subtree of them, with its adapters merged."""
    if not isinstance(tree, dict):
        return tree
    if SCOPE not in tree:
        return {name: _merged(child, adapter) for name, child in tree.items()}
    low = tree[SCOPE]
    return {name: leaf for name, leaf in tree.items() if name != SCOPE} | {
        "kernel": _sum(tree["kernel"], low["a"]["kernel"], low["b"]["kernel"], jnp.asarray(adapter.scale, jnp.float32))
    }


@jax.jit
def _sum(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    wide = jnp.float32
    product = jnp.matmul(a.astype(wide), b.astype(wide), precision="highest")
    return (kernel.astype(wide) + scale * product).astype(kernel.dtype)
