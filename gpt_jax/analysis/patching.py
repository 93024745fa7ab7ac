"""Which values matter: the loss without each head or sublayer, and what moves one run's answer towards another's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gpt_jax.analysis.capture import read
from gpt_jax.config.errors import UserError
from gpt_jax.data import Batch
from gpt_jax.model.gpt import GPT
from gpt_jax.model.paths import matches
from gpt_jax.training.loss import cross_entropy
from gpt_jax.training.step import model_arguments

Metric = Callable[[Array], Array]  # logits (B, T, V) → a number


def ablation_losses(
    model: GPT,
    params: Any,
    batch: Batch,
    capture: str | Sequence[str] = "blocks/*/attention/heads",
    *,
    by_mean: bool = False,
) -> dict[str, Float[np.ndarray, " N"]]:
    """Name of each tap that the glob matches → by how much the loss (nats per target) rises without each of its heads.

    A value without heads, such as `blocks/*/mlp_change`, is left out as a whole (N = 1). `by_mean` puts the mean over
    rows and positions in its place, and not zero. One program serves all.

    Raises:
      UserError: the glob matches nothing.
    """
    arguments = model_arguments(model, batch)
    shapes = {name: value.shape for name, value in read(model, params, batch.tokens, capture, **arguments).items()}
    axes = {name: _head_axis(name, len(shape)) for name, shape in shapes.items()}

    def keep(name: str, mask: Array, value: Array) -> Array:
        axis = axes[name]
        others = tuple(i for i in range(value.ndim - 1) if i != axis)
        instead = value.mean(others, keepdims=True) if by_mean else jnp.zeros_like(value)
        shape = [value.shape[i] if i == axis else 1 for i in range(value.ndim)]
        return jnp.where(mask.reshape(shape), value, instead)

    @jax.jit
    def loss(params: Any, masks: dict[str, Array]) -> Array:
        edit = {name: partial(keep, name, mask) for name, mask in masks.items()}
        logits: Any = model.apply(params, batch.tokens, edit=edit, **arguments)
        nll, _, _ = cross_entropy(logits, jnp.asarray(batch.targets))
        return jnp.sum(nll * batch.weights) / jnp.sum(batch.weights)

    whole = {name: np.ones(1 if axis is None else shapes[name][axis], bool) for name, axis in axes.items()}
    base = float(loss(params, whole))
    rises: dict[str, list[float]] = {name: [] for name in whole}
    for name, mask in whole.items():
        for i in range(mask.size):
            without = mask.copy()
            without[i] = False
            rises[name].append(float(loss(params, whole | {name: without})) - base)
    return {name: np.array(values) for name, values in rises.items()}


def activation_patching(
    model: GPT,
    params: Any,
    clean: Int[Array, "B T"],
    corrupted: Int[Array, "rows tokens"],
    metric: Metric,
    capture: str | Sequence[str] = "blocks/*/output",
) -> dict[str, Float[np.ndarray, " T"]]:
    """Name of each tap that the glob matches → for each position, how far the value of the `clean` run, put into the
    `corrupted` run there, moves the metric from the corrupted run's (0) to the clean run's (1) (Meng et al. 2022,
    arXiv:2202.05262).

    Args:
      metric: logits (B, T, V) → a number, such as the difference of two logits at the last position.

    Raises:
      UserError: the prompts differ in length, the glob matches nothing, or both runs have the same metric.
    """
    _check_prompts(clean, corrupted)
    values = read(model, params, clean, capture)
    length = clean.shape[1]

    @jax.jit
    def score(tokens: Array, values: dict[str, Array], masks: dict[str, Array]) -> Array:
        def patched(name: str, value: Array) -> Array:
            axis = _position_axis(name, value.ndim)
            mask = masks[name].reshape([length if i == axis else 1 for i in range(value.ndim)])
            return jnp.where(mask, values[name], value)

        return metric(_logits(model, params, tokens, {name: partial(patched, name) for name in values}))

    nowhere = {name: np.zeros(length, bool) for name in values}
    low, high = float(score(corrupted, values, nowhere)), float(score(clean, values, nowhere))
    _check_apart(low, high)
    effects = {name: np.zeros(length) for name in values}
    for name, effect in effects.items():
        for position in range(length):
            here = np.arange(length) == position
            effect[position] = (float(score(corrupted, values, nowhere | {name: here})) - low) / (high - low)
    return effects


def attribution_patching(
    model: GPT,
    params: Any,
    clean: Int[Array, "B T"],
    corrupted: Int[Array, "rows tokens"],
    metric: Metric,
    capture: str | Sequence[str] = "blocks/*/output",
) -> dict[str, Float[np.ndarray, " T"]]:
    """`activation_patching` to first order, from two runs and one gradient whatever the number of patches: the gradient
    of the metric with respect to each value of the corrupted run, times the change (Nanda 2023). Arguments and errors
    as there.
    """
    _check_prompts(clean, corrupted)
    good, bad = (read(model, params, tokens, capture) for tokens in (clean, corrupted))

    @jax.jit
    def score(changes: dict[str, Array], tokens: Array) -> Array:
        return metric(_logits(model, params, tokens, {n: partial(jnp.add, change) for n, change in changes.items()}))

    none = jax.tree.map(jnp.zeros_like, bad)
    low, high = float(score(none, corrupted)), float(score(none, clean))
    _check_apart(low, high)
    gradients = jax.grad(score)(none, corrupted)
    effects = {}
    for name, gradient in gradients.items():
        axis = _position_axis(name, gradient.ndim)
        product = np.asarray(gradient, np.float64) * (good[name] - bad[name])
        effects[name] = product.sum(tuple(i for i in range(product.ndim) if i != axis)) / (high - low)
    return effects


def _logits(model: GPT, params: Any, tokens: Array, edit: dict[str, Any]) -> Array:
    logits: Any = model.apply(params, tokens, edit=edit)
    return logits


HEADS_FIRST = ("**/heads", "**/scores", "**/logits", "**/probabilities", "**/log_decay")


def _position_axis(name: str, ndim: int) -> int:
    return 2 if matches(name, HEADS_FIRST) and ndim > 2 and name != "logits" else 1


def _head_axis(name: str, ndim: int) -> int | None:
    """The axis of heads; None if the value has none."""
    return None if ndim < 4 else 3 - _position_axis(name, ndim)


def _check_prompts(clean: Array, corrupted: Array) -> None:
    if clean.shape != corrupted.shape:
        raise UserError(
            f"patching puts values of one prompt into another at the same positions: {list(clean.shape)} and"
            f" {list(corrupted.shape)} tokens differ in shape; make the prompts equally long"
        )


def _check_apart(low: float, high: float) -> None:
    if low == high:
        raise UserError("both prompts give the same metric, so nothing can move it: choose another metric or prompt")
