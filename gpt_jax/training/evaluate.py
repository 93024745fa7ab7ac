"""Loss, accuracy and derived metrics over the whole validation set, each with its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float

from gpt_jax.config.errors import UserError
from gpt_jax.data import Batch, Data
from gpt_jax.training import blockwise
from gpt_jax.training.loss import cross_entropy
from gpt_jax.training.partition import row_parts
from gpt_jax.training.sharding import replicated, row_share, shard_batch, traced_under
from gpt_jax.training.step import loss_block, model_arguments

Evaluate = Callable[[Any], dict[str, float | int]]
Sums = Callable[[Any, Batch], Array]


def weighted_sums(model: nn.Module, by: Literal["row", "position"], params: Any, batch: Batch) -> Float[Array, "3 N"]:
    """Σ weight · nll in nats, Σ weight · hits and Σ weight of each row (N = B) or at each position (N = T)."""
    return jnp.stack([jnp.sum(x, axis=1 if by == "row" else 0) for x in weighted_terms(model, params, batch)])


def weighted_terms(model: nn.Module, params: Any, batch: Batch) -> tuple[Float[Array, "B T"], ...]:
    """weight · nll in nats, weight · hits and the weight of each target."""
    arguments, block = model_arguments(model, batch), loss_block(model, batch)
    if block is None:
        logits: Any = model.apply(params, batch.tokens, **arguments)
        nll, _, hit = cross_entropy(logits, batch.targets)
    else:
        hidden: Any = model.apply(params, batch.tokens, **arguments, method="backbone")
        nll, _, hit = blockwise.terms(model, params, hidden, batch.targets, block)
    weights = batch.weights.astype(jnp.float32)
    return weights * nll, weights * hit, weights


def compile_sums_by_row(model: nn.Module, mesh: Mesh) -> Sums:
    """`weighted_sums` of each row, compiled for parameters and batches on this mesh."""
    return jax.jit(traced_under(mesh, partial(weighted_sums, model, "row")), out_shardings=replicated(mesh))


def each_sum(sums: Sums, params: Any, batches: Iterable[Batch]) -> Iterator[Float[np.ndarray, "3 N"]]:
    """`sums(params, batch)` of each batch, fetched while the next one is computed. On CPUs, where independent programs
    in flight at once may wait for one another for ever, each is computed after the one before.
    """
    running, is_cpu = None, jax.default_backend() == "cpu"
    for batch in batches:
        if is_cpu:
            jax.block_until_ready(running)
        following = sums(params, batch)
        if running is not None:
            yield np.asarray(running)
        running = following
    if running is not None:
        yield np.asarray(running)


def make_evaluate(
    model: nn.Module, data: Data, batch_size: int, mesh: Mesh, sums_by_row: Sums | None = None
) -> Evaluate:
    """`evaluate(params) → metrics` over the whole validation set.

    About `batch_size` rows go at a time, over all devices and processes. The batch size changes no metric, since sums
    are kept by row. `sums_by_row` is the result of `compile_sums_by_row` for this model, if a caller has compiled it.
    """
    rows = -(-batch_size // row_parts(mesh)) * row_parts(mesh)
    step = compile_sums_by_row(model, mesh) if sums_by_row is None else sums_by_row

    def evaluate(params: Any) -> dict[str, float | int]:
        batches = data.validation(rows, *row_share(mesh))
        placed = (shard_batch(batch, mesh, "jit") for batch in batches)
        loss, hits, weight = np.concatenate(list(each_sum(step, params, placed)), axis=1).astype(np.float64)
        return summarize(loss, hits, weight, data.validation_bytes)

    return evaluate


def summarize(loss: np.ndarray, hits: np.ndarray, weight: np.ndarray, text_bytes: int | None) -> dict[str, float | int]:
    """Metrics from the sums of each row, (R,) each: Σ weight · nll in nats, Σ weight · hits, Σ weight.

    `text_bytes` is the number of bytes that the targets encode; None if they are not text. Standard errors are those
    of a ratio of sums over rows, since the tokens of a row are not independent; with a single row they are NaN. Those
    of perplexity and bits per byte follow from that of the loss by the delta method.

    Raises:
      UserError: no target has a weight.
    """
    mean, error = _ratio(loss, weight)
    accuracy, accuracy_error = _ratio(hits, weight)
    tokens = float(weight.sum())
    perplexity = math.exp(mean) if mean < 700 else math.inf
    result: dict[str, float | int] = {
        "loss": mean,
        "loss_standard_error": error,
        "perplexity": perplexity,
        "perplexity_standard_error": perplexity * error,
        "accuracy": accuracy,
        "accuracy_standard_error": accuracy_error,
        "tokens": round(tokens),
    }
    if text_bytes is not None:
        bits = tokens / text_bytes / math.log(2)
        result |= {"bits_per_byte": mean * bits, "bits_per_byte_standard_error": error * bits}
    return result


def _ratio(values: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Σ values / Σ weight and its standard error over rows; rows of weight 0 are left out."""
    values, weight = values[weight > 0], weight[weight > 0]
    if len(weight) == 0:
        raise UserError("the validation set has no targets: raise data.validation_fraction, or give more text")
    ratio = values.sum() / weight.sum()
    if len(weight) == 1:
        return float(ratio), math.nan
    residuals = values - ratio * weight
    variance = len(weight) / (len(weight) - 1) * np.square(residuals).sum()
    return float(ratio), float(np.sqrt(variance) / weight.sum())
