"""What a study measures of a trained arm beside its loss: by position, on longer rows, on other data, in attention."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from gpt_jax.ablation.schema import AccuracyBy, AttentionDiagnostics, Measurements
from gpt_jax.ablation.study import Probe
from gpt_jax.analysis.diagnostics import by_position, capture_attention, diagnose
from gpt_jax.config import Config, DataConfig, ModelConfig, learned_positions
from gpt_jax.data import Batch, Data, open_data
from gpt_jax.model.gpt import GPT
from gpt_jax.training.evaluate import each_sum, weighted_sums

DIAGNOSED_ROWS, DIAGNOSED_TOKENS = 8, 512


class Measure:
    """Measures trained models; those of one architecture share what is compiled."""

    def __init__(self) -> None:
        self._compiled: dict[tuple[str, ModelConfig], Any] = {}

    def all(
        self, config: Config, params: Any, data: Data, extrapolation: tuple[int, ...], probe: Probe | None
    ) -> Measurements:
        """Everything but speed and memory, of a run of the resolved `config` with parameters under canonical names."""
        model = dataclasses.replace(config.model, scan=False)
        rows = config.evaluation.batch_size
        longer = []
        for factor in extrapolation:
            if data.is_task or (learned_positions(model) or math.inf) < factor * model.context_length:
                continue
            other = open_data(config.data, factor * model.context_length, config.data_seed, progress=False)
            longer.append((factor, _totals(self._sums(model, params, other, max(1, rows // factor)))[0]))
        accuracy = None
        if probe is not None:
            points = ((x, self.accuracy(model, params, other, rows)) for x, other in probe.data.items())
            accuracy = AccuracyBy(probe.label, tuple(points))
        return Measurements(
            loss_by_position=tuple(map(tuple, by_position(self._sums(model, params, data, rows)))),
            diagnostics=self.diagnostics(model, params, data),
            extrapolation=tuple(longer),
            accuracy_by=accuracy,
        )

    def accuracy(self, model: ModelConfig, params: Any, config: DataConfig, rows: int) -> float:
        """Share of right answers on the validation rows of a task, which may be longer than those of training."""
        data = open_data(config, 10**9, 0, progress=False)
        return _totals(self._sums(model, params, data, rows))[1]

    def _sums(self, model: ModelConfig, params: Any, data: Data, rows: int) -> Float[np.ndarray, "3 T"]:
        """Σ weight · nll, Σ weight · hits and Σ weight at each position of the validation rows."""
        sums = self._get("sums", model, _sums_by_position)
        return sum(x.astype(np.float64) for x in each_sum(sums, params, data.validation(rows)))  # type: ignore[return-value]

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


def _sums_by_position(model: GPT, params: Any, batch: Batch) -> Float[Array, "3 T"]:
    return weighted_sums(model, "position", params, batch)


def _totals(sums: Float[np.ndarray, "3 T"]) -> tuple[float, float]:
    """Loss in nats per target, and accuracy."""
    loss, hits, weight = sums.sum(axis=1)
    return float(loss / weight), float(hits / weight)
