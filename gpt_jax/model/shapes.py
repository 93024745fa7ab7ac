"""Names, shapes and types of a model's parameters, computed without making them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax.config import ModelConfig
from gpt_jax.config.sharing import is_kv_shared, value_source
from gpt_jax.model.gpt import GPT
from gpt_jax.model.paths import path_of


@functools.lru_cache(maxsize=256)
def parameter_shapes(model: ModelConfig) -> Any:
    """The tree that `GPT(model).init` returns, with a `jax.ShapeDtypeStruct` for each parameter.

    Layers of a model that scans are stacked, as the model stores them.

    Raises:
      ConfigError: the configuration names something that the model lacks, such as a target of an adapter.
    """
    anywhere = GPT(dataclasses.replace(model, kernel=None))  # one token is too short for some kernels
    return jax.eval_shape(anywhere.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))


def canonical_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path → shape of each parameter under its per-layer name, whether the model scans or not.

    One layer of each kind is traced, unless layers take something from one another: tracing takes 0.05 s a layer.
    """
    blocks = model.blocks
    if value_source(model.attentions) is None and not is_kv_shared(model.attentions):
        blocks = tuple(dict.fromkeys(blocks))
    tree = parameter_shapes(dataclasses.replace(model, blocks=blocks, scan=False))
    if len(blocks) < model.layers:
        kinds = {block: tree["params"]["blocks"][str(layer)] for layer, block in enumerate(blocks)}
        layers = {str(layer): kinds[block] for layer, block in enumerate(model.blocks)}
        tree = {"params": {**tree["params"], "blocks": layers}}
    return {path_of(keys): leaf.shape for keys, leaf in jax.tree.leaves_with_path(tree)}
