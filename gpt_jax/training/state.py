"""All that a training step changes, and the trees that a checkpoint holds of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from gpt_jax import config
from gpt_jax.config import Config
from gpt_jax.model.adapter import grafted, pruned, trainable
from gpt_jax.model.gpt import GPT
from gpt_jax.model.paths import path_of
from gpt_jax.model.stack import canonical, stacked
from gpt_jax.training.optimizer import make_optimizer

PARAMS, REST = "params", "rest"


@struct.dataclass
class TrainState:
    """All that a training step changes. `params` is what `model.init` returns; `optimizer` is about those that train
    (`model.adapter.trainable`).

    `step` counts batches. `skipped` counts those whose loss or gradient was not finite, `skipped_in_row` those of them
    since the last good one.
    """

    step: Any  # int32 ()
    params: Any
    optimizer: Any
    skipped: Any  # int32 ()
    skipped_in_row: Any  # int32 ()


@struct.dataclass
class Given:
    """What runs that share a compiled step may differ in: the key that dropout draws from, and the learning rate."""

    key: Any  # the data of the run's key: a key itself can't be put on devices of other processes
    learning_rate: Any  # () float32, weakly typed as a Python float is


def given_by(c: config.Config) -> Given:
    """The `Given` of a configuration; a step that takes it computes what one with these numbers inside would."""
    return Given(jax.random.key_data(jax.random.key(c.seed)), jnp.asarray(c.optimizer.learning_rate))


def init_state(model: nn.Module, c: config.Config) -> TrainState:
    """The state before the first step, a function of the configuration alone."""
    tokens = jnp.zeros((1, c.model.context_length), jnp.int32)
    params = model.init(jax.random.key(c.seed), tokens)
    return first_state(params, jax.jit(make_optimizer(c.optimizer).init)(trainable(params)))


def first_state(params: Any, optimizer: Any) -> TrainState:
    """The state before the first step, of initial parameters and the optimizer's initial state for them."""
    step, skipped, in_row = (jnp.zeros((), jnp.int32) for _ in range(3))  # three buffers: each is donated by itself
    return TrainState(step, params, optimizer, skipped, in_row)


def to_trees(state: TrainState) -> dict[str, Any]:
    """A state as the items of a checkpoint: the parameters that train under canonical names, and everything else as a
    flat dict of paths.
    """
    rest = canonical(
        {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != "params"}
    )
    return {
        PARAMS: pruned(canonical(trainable(state.params))),
        REST: {path_of(path): leaf for path, leaf in jax.tree.leaves_with_path(rest)},
    }


def from_trees(config: Config, trees: Mapping[str, Any], base: Any = None) -> TrainState:
    """Inverse of `to_trees`; `base` holds the parameters that don't train, under canonical names."""
    params = trees[PARAMS] if base is None else grafted(base, trees[PARAMS])
    shapes = jax.eval_shape(partial(init_state, GPT(config.model), config))
    fields = {field.name: getattr(shapes, field.name) for field in dataclasses.fields(shapes) if field.name != "params"}
    template = jax.eval_shape(canonical, fields)
    rest = jax.tree.map_with_path(lambda path, _: trees[REST][path_of(path)], template)
    return TrainState(params=stacked(config.model, params), **stacked(config.model, rest))


def templates(config: Config, sharding: jax.sharding.Sharding) -> dict[str, Any]:
    """Shapes and types of the items of a checkpoint, placed by `sharding`."""
    trees = jax.eval_shape(lambda: to_trees(init_state(GPT(config.model), config)))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), trees)
