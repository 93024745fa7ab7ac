"""Optimizers built from optax, with rules that name parameters by path.

Parameters of a scanned stack have a leading axis of layers; each layer is updated as if it were stored alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from gpt_jax import config
from gpt_jax.config.errors import UserError
from gpt_jax.model.paths import is_stacked, layer_paths, map_with_path, matches, path_of

MATRICES = ("blocks/**/kernel",)


def make_optimizer(optimizer: config.OptimizerConfig) -> optax.GradientTransformation:
    """The optimizer, whose updates are for a learning rate of 1: multiply them by the rate and add them.

    Updates include weight decay. Those of Muon's other group include the factor `adam_ratio`.

    Raises:
      UserError: from `init`, a rule of `optimizer.decay` names no parameter.
    """
    return MAKERS[type(optimizer)](optimizer)


def _decay(optimizer: Any) -> optax.GradientTransformation:
    """Adds `weight_decay` times the parameter to the update of every parameter whose path matches a rule of `decay`."""

    def init(params: Any) -> optax.EmptyState:
        paths = [layer for keys, _ in jax.tree.leaves_with_path(params) for layer in layer_paths(path_of(keys))]
        for rule in optimizer.decay:
            if not any(matches(path, [rule]) for path in paths):
                known = ", ".join(dict.fromkeys(path.rsplit("/", 1)[-1] for path in paths))
                raise UserError(f'optimizer.decay has "{rule}", which names no parameter; paths end in {known}')
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        def add(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
            decays = np.array([matches(layer, optimizer.decay) for layer in layer_paths(path)], param.dtype)
            if not decays.any():
                return update
            if is_stacked(path) and not decays.all():
                return update + optimizer.weight_decay * decays.reshape(-1, *[1] * (param.ndim - 1)) * param
            return update + optimizer.weight_decay * param

        return (map_with_path(add, updates, params) if optimizer.weight_decay else updates), state

    return optax.GradientTransformation(init, update)


def _adamw(c: config.Adamw) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_adam(c.beta1, c.beta2, c.eps), _decay(c), optax.scale(-1.0))


def _lion(c: config.Lion) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_lion(c.beta1, c.beta2), _decay(c), optax.scale(-1.0))


def _sgd(c: config.Sgd) -> optax.GradientTransformation:
    momentum = optax.identity() if c.momentum is None else optax.trace(c.momentum, nesterov=True)
    return optax.chain(momentum, _decay(c), optax.scale(-1.0))


def _adafactor(c: config.Adafactor) -> optax.GradientTransformation:
    one = optax.chain(optax.scale_by_factored_rms(decay_rate=c.decay_rate), optax.clip_by_block_rms(1.0))

    def over_layers(function: Callable[..., Any], tree: Any, of_state: bool) -> Callable[..., Any]:
        """`function`, vmapped over the layers of stacked leaves."""
        axes = map_with_path(lambda path, _: 0 if is_stacked(path) else None, tree)
        if not jax.tree.leaves(axes):
            return function
        state = (optax.FactoredState(count=None, v_row=axes, v_col=axes, v=axes), optax.EmptyState())
        into, out = ((axes, state, axes), (axes, state)) if of_state else ((axes,), state)
        return jax.vmap(function, into, out)

    def init(params: Any) -> Any:
        return over_layers(one.init, params, of_state=False)(params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return over_layers(one.update, updates, of_state=True)(updates, state, params)

    return optax.chain(optax.GradientTransformation(init, update), _decay(c), optax.scale(-1.0))


def _muon(c: config.Muon) -> optax.GradientTransformation:
    def group(path: str, _: Any = None) -> str:
        return "muon" if matches(path, MATRICES) else "adam"

    def orthogonal(matrix: jax.Array) -> jax.Array:
        fan_in, fan_out = matrix.shape[-2:]
        return max(1.0, fan_out / fan_in) ** 0.5 * orthogonalize(matrix)

    groups = {
        "muon": optax.chain(
            optax.trace(c.momentum, nesterov=True),
            optax.stateless(lambda updates, _: jax.tree.map(orthogonal, updates)),
        ),
        "adam": optax.scale_by_adam(c.beta1, c.beta2, c.eps),
    }
    grouped = optax.partition(groups, lambda params: map_with_path(group, params))

    def scale_others(updates: Any, _: Any) -> Any:
        return map_with_path(lambda path, update: update if group(path) == "muon" else c.adam_ratio * update, updates)

    return optax.chain(grouped, _decay(c), optax.stateless(scale_others), optax.scale(-1.0))


def orthogonalize(matrix: Float[Array, "*layers C F"]) -> Float[Array, "*layers C F"]:
    """Approximates U·Vᵀ of the singular value decomposition U·S·Vᵀ by five quintic Newton–Schulz steps (Jordan et al.
    2024). The singular values of the result lie between about 0.7 and 1.2.

    `optax.contrib.muon` is not used because it adds a batch axis of 1 to every matrix, and XLA on CPU multiplies such
    batches at half the speed.
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.swapaxes(-1, -2) if tall else matrix
    x /= jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-8
    for _ in range(5):
        gram = x @ x.swapaxes(-1, -2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.swapaxes(-1, -2) if tall else x


MAKERS: dict[type[config.OptimizerConfig], Callable[..., optax.GradientTransformation]] = {
    config.Adamw: _adamw,
    config.Lion: _lion,
    config.Muon: _muon,
    config.Sgd: _sgd,
    config.Adafactor: _adafactor,
}
