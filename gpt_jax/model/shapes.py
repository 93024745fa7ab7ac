"""Names, shapes and types of a model's parameters, computed without making them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax.config import ModelConfig
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
    """Path → shape of each parameter under its per-layer name, whether the model scans or not."""
    tree = parameter_shapes(dataclasses.replace(model, scan=False))
    return {path_of(keys): leaf.shape for keys, leaf in jax.tree.leaves_with_path(tree)}
