"""Which values matter: the loss without each head or sublayer, and what moves one run's answer towards another's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gpt_jax.analysis.capture import Settings, heads_first, read, split_options, tap_shapes
from gpt_jax.config.errors import UserError, nearest
from gpt_jax.data import Batch
from gpt_jax.model.gpt import GPT
from gpt_jax.model.paths import matches
from gpt_jax.training.loss import cross_entropy
from gpt_jax.training.step import model_arguments

Metric = Callable[[Array], Array]  # logits (B, T, V) → a number
Axes = tuple[tuple[str, int | None], ...]  # of values, by name


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
    globs = (capture,) if isinstance(capture, str) else capture
    every = tap_shapes(model, params, batch.tokens, **arguments)
    for glob in globs:
        if not any(matches(name, [glob]) for name in every):
            raise UserError(f'capture="{glob}" matches nothing{nearest(glob, every)}')
    shapes = {name: shape.shape for name, shape in every.items() if matches(name, globs)}
    first = heads_first(model, params, batch.tokens, **arguments)
    axes = {name: _head_axis(name in first, len(shape)) for name, shape in shapes.items()}
    settings, given = split_options(arguments)
    program = _loss_without(model, settings, tuple(axes.items()), by_mean)
    loss = partial(program, params, batch._replace(segments=None, positions=None), given)
    whole = {name: np.ones(1 if axis is None else shapes[name][axis], bool) for name, axis in axes.items()}
    base = float(loss(whole))
    rises: dict[str, list[float]] = {name: [] for name in whole}
    for name, mask in whole.items():
        for i in range(mask.size):
            without = mask.copy()
            without[i] = False
            rises[name].append(float(loss(whole | {name: without})) - base)
    return {name: np.array(values) for name, values in rises.items()}


@lru_cache(maxsize=16)
def _loss_without(model: GPT, settings: Settings, axes: Axes, by_mean: bool) -> Any:
    """The compiled loss of a batch in which the heads that masks leave out, by name, are ablated. `axes` has the axis
    of heads of each value, None where it has none.
    """

    def keep(axis: int | None, mask: Array, value: Array) -> Array:
        others = tuple(i for i in range(value.ndim - 1) if i != axis)
        instead = value.mean(others, keepdims=True) if by_mean else jnp.zeros_like(value)
        shape = [value.shape[i] if i == axis else 1 for i in range(value.ndim)]
        return jnp.where(mask.reshape(shape), value, instead)

    def loss(params: Any, batch: Batch, given: Any, masks: dict[str, Array]) -> Array:
        edit = {name: partial(keep, axis, masks[name]) for name, axis in axes}
        logits: Any = model.apply(params, batch.tokens, edit=edit, **dict(settings), **given)
        nll, _, _ = cross_entropy(logits, jnp.asarray(batch.targets))
        return jnp.sum(nll * batch.weights) / jnp.sum(batch.weights)

    return jax.jit(loss)


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
    values, length = read(model, params, clean, capture), clean.shape[1]
    score = partial(_patched(model, _axes(model, params, clean, values), metric), params)
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
    score = _changed(model, metric)
    none = jax.tree.map(jnp.zeros_like, bad)
    (low, gradients), (high, _) = (score(none, params, tokens) for tokens in (corrupted, clean))
    low, high = float(low), float(high)
    _check_apart(low, high)
    effects = {}
    for name, axis in _axes(model, params, clean, good):
        gradient = gradients[name]
        product = np.asarray(gradient, np.float64) * (good[name] - bad[name])
        effects[name] = product.sum(tuple(i for i in range(product.ndim) if i != axis)) / (high - low)
    return effects


def _logits(model: GPT, params: Any, tokens: Array, edit: dict[str, Any]) -> Array:
    logits: Any = model.apply(params, tokens, edit=edit)
    return logits


def _axes(model: GPT, params: Any, tokens: Array, values: Mapping[str, Any]) -> Axes:
    """The axis of positions of each value.

    Raises:
      UserError: a value has none, as a recurrent mixer's state.
    """
    first, T = heads_first(model, params, tokens), tokens.shape[1]
    axes = {name: 2 if name in first else 1 for name in values}
    for name, axis in axes.items():
        if name.endswith("/state") or np.shape(values[name])[axis : axis + 1] != (T,):
            raise UserError(f'"{name}" is no value of each position, which patching needs: leave it out of capture')
    return tuple(axes.items())


def _head_axis(is_first: bool, ndim: int) -> int | None:
    """The axis of heads; None if the value has none."""
    return 1 if is_first else None if ndim < 4 else 2


# Compiled anew in each call: a metric may read what changes between two, such as a variable of a notebook.
def _patched(model: GPT, axes: Axes, metric: Metric) -> Any:
    """The compiled metric of tokens with `values` in place of the run's own where the masks (T,) are true. `axes` has
    the axis of positions of each value.
    """

    def score(params: Any, tokens: Array, values: dict[str, Array], masks: dict[str, Array]) -> Array:
        def patched(name: str, axis: int | None, value: Array) -> Array:
            mask = masks[name].reshape([-1 if i == axis else 1 for i in range(value.ndim)])
            return jnp.where(mask, values[name], value)

        return metric(_logits(model, params, tokens, {name: partial(patched, name, axis) for name, axis in axes}))

    return jax.jit(score)


def _changed(model: GPT, metric: Metric) -> Any:
    """The compiled metric of tokens and its gradients by `changes` that are added to values."""

    def score(changes: dict[str, Array], params: Any, tokens: Array) -> Array:
        return metric(_logits(model, params, tokens, {n: partial(jnp.add, change) for n, change in changes.items()}))

    return jax.jit(jax.value_and_grad(score))


def _check_prompts(clean: Array, corrupted: Array) -> None:
    if clean.shape != corrupted.shape:
        raise UserError(
            f"patching puts values of one prompt into another at the same positions: {list(clean.shape)} and"
            f" {list(corrupted.shape)} tokens differ in shape; make the prompts equally long"
        )


def _check_apart(low: float, high: float) -> None:
    if low == high:
        raise UserError("both prompts give the same metric, so nothing can move it: choose another metric or prompt")
