"""What a trained arm is asked beside its loss: by position, on longer rows, on other data, inside its attention, and
how fast it decodes.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpt_jax.ablation.study import Probe
from gpt_jax.config import Attention, Config, DataConfig, ModelConfig, learned_positions
from gpt_jax.data import Batch, Data, open_data
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Greedy
from gpt_jax.model.gpt import GPT
from gpt_jax.model.paths import matches
from gpt_jax.training.loss import cross_entropy
from gpt_jax.training.step import model_arguments

DIAGNOSED_ROWS, DIAGNOSED_TOKENS = 8, 512
# A layer has those of these that its kind of attention taps: a linear one has no probabilities.
DIAGNOSED = tuple(f"blocks/*/attention/{name}" for name in ("probabilities", "queries", "keys"))
NEW_TOKENS = 32


class Measure:
    """Asks trained models; those of one architecture share what is compiled."""

    def __init__(self) -> None:
        self._compiled: dict[tuple[str, ModelConfig], Any] = {}

    def all(
        self, config: Config, params: Any, data: Data, extrapolation: tuple[int, ...], probe: Probe | None
    ) -> dict[str, Any]:
        """Everything about a run of the resolved `config`, with parameters under canonical names, as JSON holds it."""
        model = dataclasses.replace(config.model, scan=False)
        rows = config.evaluation.batch_size
        result: dict[str, Any] = {
            "loss_by_position": by_position(self._sums(model, params, data, rows)),
            "diagnostics": self.diagnostics(model, params, data),
            "extrapolation": [],
            "accuracy_by": None,
        }
        for factor in extrapolation:
            if data.is_task or (learned_positions(model) or math.inf) < factor * model.context_length:
                continue
            longer = open_data(config.data, factor * model.context_length, config.data_seed, progress=False)
            loss, _ = _totals(self._sums(model, params, longer, max(1, rows // factor)))
            result["extrapolation"].append([factor, loss])
        if probe is not None:
            points = [[x, self.accuracy(model, params, other, rows)] for x, other in probe.data.items()]
            result["accuracy_by"] = {"label": probe.label, "points": points}
        return result

    def accuracy(self, model: ModelConfig, params: Any, config: DataConfig, rows: int) -> float:
        """Share of the answers that are right on the validation rows of a task, which may be longer than training's."""
        data = open_data(config, 10**9, 0, progress=False)
        return _totals(self._sums(model, params, data, rows))[1]

    def _sums(self, model: ModelConfig, params: Any, data: Data, rows: int) -> Float[np.ndarray, "3 T"]:
        """Σ weight · nll, Σ weight · hits and Σ weight at each place of the validation rows."""
        step = self._get("sums", model, _sums_by_place)
        return sum(np.asarray(step(params, b), np.float64) for b in data.validation(rows))  # type: ignore[return-value]

    def diagnostics(self, model: ModelConfig, params: Any, data: Data) -> dict[str, float | None]:
        """Of the first validation rows, see `diagnose`."""
        batch = next(data.validation(DIAGNOSED_ROWS))
        cut = jax.tree.map(lambda x: x[:, :DIAGNOSED_TOKENS], batch)
        return diagnose(model, jax.device_get(self._get("capture", model, _capture)(params, cut)))

    def _get(self, what: str, model: ModelConfig, function: Callable[..., Any]) -> Any:
        if (what, model) not in self._compiled:
            self._compiled[what, model] = jax.jit(partial(function, GPT(model)))
        return self._compiled[what, model]


def _capture(model: GPT, params: Any, batch: Batch) -> dict[str, Array]:
    captured: Any = model.apply(params, batch.tokens, capture="**", **model_arguments(model, batch))
    return {name: value for name, value in captured[1].items() if matches(name, DIAGNOSED)}


def _sums_by_place(model: GPT, params: Any, batch: Batch) -> Float[Array, "3 T"]:
    logits: Any = model.apply(params, batch.tokens, **model_arguments(model, batch))
    nll, _, hit = cross_entropy(logits, batch.targets)
    weights = batch.weights.astype(jnp.float32)
    return jnp.stack([jnp.sum(weights * nll, axis=0), jnp.sum(weights * hit, axis=0), jnp.sum(weights, axis=0)])


def _totals(sums: Float[np.ndarray, "3 T"]) -> tuple[float, float]:
    """Loss in nats per target, and accuracy."""
    loss, hits, weight = sums.sum(axis=1)
    return float(loss / weight), float(hits / weight)


def by_position(sums: Float[np.ndarray, "3 T"], most: int = 64) -> list[list[float]]:
    """[[mean place from 0, mean loss in nats], …] of at most `most` bins, whose widths grow with the place."""
    length = sums.shape[1]
    edges = np.unique(np.round(np.geomspace(1, length + 1, most + 1)).astype(int)) - 1
    result = []
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        loss, _, weight = sums[:, start:stop].sum(axis=1)
        if weight > 0:
            result.append([float(start + stop - 1) / 2, float(loss / weight)])
    return result


def diagnose(model: ModelConfig, captured: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """Means over layers, heads and rows of what was captured: `attention_entropy` in nats, `sink_mass` (the probability
    on the row's first token, from all later ones), and the largest |logit| before softcap and biases. None without
    softmax attention.
    """
    entropies, sinks, logits = [], [], []
    for name, value in captured.items():
        place, what = name.rsplit("/", 1)
        value = np.asarray(value, np.float64)
        if what == "probabilities":
            p = value / np.maximum(value.sum(axis=-1, keepdims=True), 1e-30)
            entropies.append(float(-np.sum(p * np.log(np.maximum(p, 1e-30)), axis=-1)[:, :, 1:].mean()))
            sinks.append(float(value[:, :, 1:, 0].mean()))
        attention = model.blocks[int(place.split("/")[1])].attention
        if what == "queries" and f"{place}/keys" in captured and isinstance(attention, Attention):
            logits.append(_largest_logit(value, np.asarray(captured[f"{place}/keys"], np.float64), attention))
    return {
        "attention_entropy": float(np.mean(entropies)) if entropies else None,
        "sink_mass": float(np.mean(sinks)) if sinks else None,
        "largest_logit": max(logits) if logits else None,
    }


def _largest_logit(
    query: Float[np.ndarray, "B T H D"], key: Float[np.ndarray, "B T K D"], attention: Attention
) -> float:
    scale = query.shape[-1] ** -0.5 if attention.score.scale is None else attention.score.scale
    key = np.repeat(key, query.shape[2] // key.shape[2], axis=2)
    scores = np.tril(np.abs(np.einsum("bthd,bshd->bhts", query, key)))
    return float(scale * scores.max())


def decode_rate(model: ModelConfig, params: Any, rounds: int = 3) -> float | None:
    """Tokens per second of greedy decoding of one row, the best of some rounds; None where the context has no room."""
    new = min(NEW_TOKENS, model.context_length - 2)
    if new < 1:
        return None
    best = math.inf
    for _ in range(rounds + 1):
        start = time.perf_counter()
        options: Any = {"key": jax.random.key(0), "max_new_tokens": new, "sampler": Greedy()}
        jax.block_until_ready(generate(GPT(dataclasses.replace(model, scan=False)), params, [[0, 1]], **options).tokens)
        best = min(best, time.perf_counter() - start)  # the first round compiles
    return new / best
