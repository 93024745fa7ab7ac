"""The training state: its initial value, its shapes, and the trees that a checkpoint stores of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from gpt_jax.config import Config
from gpt_jax.model.adapter import grafted, pruned, replaced, trainable
from gpt_jax.model.gpt import GPT
from gpt_jax.model.stack import canonical, stacked
from gpt_jax.training.optimizer import make_optimizer
from gpt_jax.training.spikes import first_losses

PARAMS, REST = "params", "rest"


@struct.dataclass
class TrainState:
    """Everything that a training step changes.

    `params` has the structure that `model.init` returns. `optimizer` holds moments of the trainable parameters only
    (`model.adapter.trainable`). `step` counts batches, `skipped` those whose update was not applied, because the loss
    or gradient was not finite or the loss spiked, and `skipped_in_row` those since the last applied one. `average` is
    the mean of the trainable parameters over the steps, if the run keeps one (`train.average`), and zeros before the
    first step. `recent` holds the last losses if the run skips spikes (`train.spikes`).
    """

    step: Any  # int32 ()
    params: Any
    optimizer: Any
    skipped: Any  # int32 ()
    skipped_in_row: Any  # int32 ()
    average: Any = None
    recent: Any = None  # float32 (W,)

    @property
    def model_params(self) -> Any:
        """The parameters of the run's model, to be evaluated: the average, if the run keeps one."""
        return self.params if self.average is None else replaced(self.params, self.average)


@struct.dataclass
class Given:
    """What may differ between runs that share a compiled step: the key for dropout, and the learning rate."""

    key: Any  # the key's data: a typed key cannot be placed on devices of other processes
    learning_rate: Any  # () float32, weakly typed as a Python float is


def given_by(c: Config) -> Given:
    """The `Given` of a configuration. A step gives the same numbers with it as with the configuration's own values."""
    return Given(jax.random.key_data(jax.random.key(c.seed)), jnp.asarray(c.optimizer.learning_rate))


def init_params(model: nn.Module, c: Config, key: jax.Array) -> Any:
    """Draws all parameters from `key`."""
    return model.init(key, jnp.zeros((1, c.model.context_length), jnp.int32))


def first_state(c: Config, params: Any) -> TrainState:
    """The state before the first step, for initial parameters.

    Raises:
      UserError: a rule of `optimizer.decay` names no parameter.
    """
    step, skipped, in_row = (jnp.zeros((), jnp.int32) for _ in range(3))  # three buffers, since each one is donated
    part = trainable(params)
    average = None if c.train.average is None else optax.tree.zeros_like(part)
    moments, recent = jax.jit(make_optimizer(c.optimizer).init)(part), first_losses(c.train.spikes)
    return TrainState(step, params, moments, skipped, in_row, average, recent)


def init_state(model: nn.Module, c: Config) -> TrainState:
    """The state before the first step, a pure function of the configuration. Raises as `first_state`."""
    return first_state(c, init_params(model, c, jax.random.key(c.seed)))


def state_shapes(c: Config) -> TrainState:
    """Shapes and types of a state of the resolved configuration `c`, computed without making it."""
    return jax.eval_shape(partial(init_state, GPT(c.model), c))


def to_trees(state: TrainState) -> dict[str, Any]:
    """The items of a checkpoint: the trainable parameters of the run's model under canonical per-layer names, and a
    flat dict, path → array, of everything else. If the run averages its weights, the last weights are in the latter.
    """
    rest = canonical(_rest(state))
    return {
        PARAMS: pruned(canonical(trainable(state.model_params))),
        REST: {_key(path): leaf for path, leaf in jax.tree.leaves_with_path(rest)},
    }


def _rest(state: TrainState) -> dict[str, Any]:
    """Field → what a checkpoint's item REST holds of it; `average` is the item PARAMS then."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    average = fields.pop("average")
    return fields | {"params": None if average is None else trainable(state.params)}


def tree_shapes(c: Config) -> dict[str, Any]:
    """Shapes and types of the items of a checkpoint of the resolved configuration `c`."""
    return jax.eval_shape(to_trees, state_shapes(c))


def from_trees(c: Config, trees: Mapping[str, Any], base: Any = None) -> TrainState:
    """Inverse of `to_trees`. `base` holds the parameters that are not trainable, under canonical names."""
    shapes = state_shapes(c)
    template = jax.eval_shape(canonical, _rest(shapes))
    rest = jax.tree.map_with_path(lambda path, _: trees[REST][_key(path)], template)
    params = trees[PARAMS] if base is None else grafted(base, trees[PARAMS])
    rest = stacked(c.model, rest)
    model = stacked(c.model, params)
    if shapes.average is None:
        return TrainState(**rest | {"params": model})
    return TrainState(**rest | {"params": replaced(model, rest["params"]), "average": trainable(model)})


def _key(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
