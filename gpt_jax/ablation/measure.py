"""What a study measures of a trained arm beside its loss: by position, on longer rows, on other data, in attention;
and, by validation row, what its endpoint is a mean of.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpt_jax.ablation.endpoint import Endpoint, FinalLoss, LongLoss, PositionLoss, ProbeAccuracy
from gpt_jax.ablation.rows import RowSums, kept_for
from gpt_jax.ablation.schema import AccuracyBy, AttentionDiagnostics, Measurements
from gpt_jax.ablation.study import Probe
from gpt_jax.analysis.diagnostics import by_position, capture_attention, diagnose
from gpt_jax.config import Config, DataConfig, ModelConfig, learned_positions
from gpt_jax.data import Batch, Data, open_data
from gpt_jax.model.gpt import GPT
from gpt_jax.training.evaluate import each_sum, weighted_terms

DIAGNOSED_ROWS, DIAGNOSED_TOKENS = 8, 512


class Measure:
    """Measures trained models; those of one architecture share what is compiled."""

    def __init__(self) -> None:
        self._compiled: dict[tuple[str, ModelConfig], Any] = {}

    def all(
        self,
        config: Config,
        params: Any,
        data: Data,
        extrapolation: tuple[int, ...],
        probe: Probe | None,
        endpoint: Endpoint,
    ) -> tuple[Measurements, RowSums | None]:
        """Everything but speed and memory, of a run of the resolved `config` with parameters under canonical names, and
        the validation rows that are kept for the `endpoint`; None where the model can't read them.
        """
        model = dataclasses.replace(config.model, scan=False)
        size, kept = config.evaluation.batch_size, kept_for(endpoint)
        sums, positions = self._sums(model, params, data, size)
        rows: dict[Endpoint, RowSums] = {FinalLoss(): (sums[0], sums[2])}
        longer = []
        for factor in extrapolation:
            if data.is_task or (learned_positions(model) or math.inf) < factor * model.context_length:
                continue
            other = open_data(config.data, factor * model.context_length, config.data_seed, progress=False)
            sums, _ = self._sums(model, params, other, max(1, size // factor))
            longer.append((factor, _totals(sums)[0]))
            rows[LongLoss(factor)] = sums[0], sums[2]
        accuracy = None
        if probe is not None:
            found = {x: self._sums(model, params, _opened(other), size)[0] for x, other in probe.data.items()}
            accuracy = AccuracyBy(probe.label, tuple((x, _totals(sums)[1]) for x, sums in found.items()))
            rows |= {ProbeAccuracy(x): (sums[1], sums[2]) for x, sums in found.items()}
            rows[ProbeAccuracy()] = _joined(list(found.values()))
        if isinstance(kept, PositionLoss):
            sums, _ = self._sums(model, params, data, size, slice(kept.first, kept.stop))
            rows[kept] = sums[0], sums[2]
        measured = Measurements(
            loss_by_position=tuple(map(tuple, by_position(positions))),
            diagnostics=self.diagnostics(model, params, data),
            extrapolation=tuple(longer),
            accuracy_by=accuracy,
        )
        return measured, rows[kept] if kept in rows else None

    def _sums(
        self, model: ModelConfig, params: Any, data: Data, rows: int, positions: slice = slice(None)
    ) -> tuple[Float[np.ndarray, "3 R"], Float[np.ndarray, "3 T"]]:
        """Σ weight · nll, Σ weight · hits and Σ weight of each validation row and at each position, of the targets at
        the given positions.
        """
        batches = (_only(batch, positions) for batch in data.validation(rows))
        found = [x.astype(np.float64) for x in each_sum(self._get("sums", model, _sums_both_ways), params, batches)]
        by_row = np.concatenate([x[:, :rows] for x in found], axis=1)[:, : data.validation_rows]
        return by_row, np.sum([x[:, rows:] for x in found], axis=0)

    def diagnostics(self, model: ModelConfig, params: Any, data: Data) -> AttentionDiagnostics:
        """`diagnose` of the first validation rows."""
        batch = next(data.validation(DIAGNOSED_ROWS))
        cut = jax.tree.map(lambda x: x[:, :DIAGNOSED_TOKENS], batch)
        captured = self._get("capture", model, capture_attention)(params, cut)
        return AttentionDiagnostics(**diagnose(model, jax.device_get(captured)))

    def _get(self, what: str, model: ModelConfig, function: Callable[..., Any]) -> Any:
        if (what, model) not in self._compiled:
            self._compiled[what, model] = jax.jit(partial(function, GPT(model)))
        return self._compiled[what, model]


def _sums_both_ways(model: GPT, params: Any, batch: Batch) -> Float[Array, "3 N"]:
    """Σ weight · nll, Σ weight · hits and Σ weight: of each row, then at each position (N = B + T)."""
    terms = weighted_terms(model, params, batch)
    return jnp.stack([jnp.concatenate([x.sum(axis=1), x.sum(axis=0)]) for x in terms])


def _opened(config: DataConfig) -> Data:
    """The rows of a task, which may be longer than those of training."""
    return open_data(config, 10**9, 0, progress=False)


def _only(batch: Batch, positions: slice) -> Batch:
    """The batch with weight 0 at other positions."""
    weights = np.zeros_like(batch.weights)
    weights[:, positions] = batch.weights[:, positions]
    return batch._replace(weights=weights)


def _joined(found: Sequence[Float[np.ndarray, "3 R"]]) -> RowSums:
    """Hits and weights of the rows of several data sets, scaled so that each set weighs 1: their ratio is the mean of
    the accuracies.
    """
    scaled = np.concatenate([sums / sums[2].sum() for sums in found], axis=1)
    return scaled[1], scaled[2]


def _totals(sums: Float[np.ndarray, "3 N"]) -> tuple[float, float]:
    """Loss in nats per target, and accuracy."""
    loss, hits, weight = sums.sum(axis=1)
    return float(loss / weight), float(hits / weight)
