"""Loss and what follows from it on the whole validation set, with a standard error beside each number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from gpt_jax.config.errors import UserError
from gpt_jax.data import Batch, Data
from gpt_jax.training.loss import cross_entropy
from gpt_jax.training.sharding import shard_batch, traced_under
from gpt_jax.training.step import model_arguments

Evaluate = Callable[[Any], dict[str, float | int]]
SumsByRow = Callable[[Any, Batch], Any]


def compile_sums(model: nn.Module, mesh: Mesh) -> SumsByRow:
    """(params, batch) → Σ nll, Σ hits and Σ weight of each row, (3, B), compiled once."""

    def sums_by_row(params: Any, batch: Batch) -> Float[Array, "3 B"]:
        logits: Any = model.apply(params, batch.tokens, **model_arguments(model, batch))
        nll, _, hit = cross_entropy(logits, batch.targets)
        weights = batch.weights.astype(jnp.float32)
        return jnp.stack([jnp.sum(weights * nll, axis=1), jnp.sum(weights * hit, axis=1), jnp.sum(weights, axis=1)])

    return jax.jit(traced_under(mesh, sums_by_row), out_shardings=NamedSharding(mesh, PartitionSpec()))


def make_evaluate(
    model: nn.Module, data: Data, batch_size: int, mesh: Mesh, sums_by_row: SumsByRow | None = None
) -> Evaluate:
    """`evaluate(params) → metrics` over the whole validation set, compiled once; `sums_by_row` is what `compile_sums`
    made for the model, if another run did already.

    About `batch_size` rows go at a time, over all devices and processes; that changes no number, since sums are kept by
    row.
    """
    rows = -(-batch_size // mesh.size) * mesh.size
    step = compile_sums(model, mesh) if sums_by_row is None else sums_by_row

    def evaluate(params: Any) -> dict[str, float | int]:
        sums, running = [], None
        for batch in data.validation(rows, jax.process_index(), jax.process_count()):
            following = step(params, shard_batch(batch, mesh, "jit"))
            if running is not None:
                sums.append(np.asarray(running))  # fetched while the next batch computes
            running = following
        sums.append(np.asarray(running))
        loss, hits, weight = np.concatenate(sums, axis=1).astype(np.float64)
        return summarize(loss, hits, weight, data.validation_bytes)

    return evaluate


def summarize(loss: np.ndarray, hits: np.ndarray, weight: np.ndarray, text_bytes: int | None) -> dict[str, float | int]:
    """Metrics from sums over each row, (R,) each: Σ nll in nats, Σ hits, Σ weight. `text_bytes` is what the targets
    stand for, if text.

    Standard errors are those of a ratio of sums over rows (a row's tokens are not independent); NaN where there is one
    row only. Those of the perplexity and of the bits per byte follow from the loss's by the delta method.
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
    """Σ values / Σ weight and its standard error over rows; rows without weight are no rows."""
    values, weight = values[weight > 0], weight[weight > 0]
    if len(weight) == 0:
        raise UserError("the validation set has no targets: raise data.validation_fraction, or give more text")
    ratio = values.sum() / weight.sum()
    if len(weight) == 1:
        return float(ratio), math.nan
    residuals = values - ratio * weight
    variance = len(weight) / (len(weight) - 1) * np.square(residuals).sum()
    return float(ratio), float(np.sqrt(variance) / weight.sum())
