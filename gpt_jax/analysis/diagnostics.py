"""Numbers that say how a model attends, where in a row it predicts well, and how fast it decodes."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from gpt_jax.analysis.capture import tap_shapes
from gpt_jax.config import Attention, ModelConfig
from gpt_jax.data import Batch
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Greedy
from gpt_jax.model.gpt import GPT
from gpt_jax.model.paths import matches
from gpt_jax.training.step import model_arguments

NEW_TOKENS = 32
# A layer has those of these that its kind of attention taps: a linear one has no probabilities.
DIAGNOSED = tuple(f"blocks/*/attention/{name}" for name in ("probabilities", "queries", "keys"))


def capture_attention(model: GPT, params: Any, batch: Batch) -> dict[str, Array]:
    """Path → what `diagnose` reads of each layer: probabilities, queries and keys of the rows in `batch`."""
    arguments = model_arguments(model, batch)
    names = [name for name in tap_shapes(model, params, batch.tokens, **arguments) if matches(name, DIAGNOSED)]
    if not names:
        return {}
    _, captured = model.apply(params, batch.tokens, capture=names, **arguments)
    assert isinstance(captured, dict)
    return captured


def by_position(sums: Float[np.ndarray, "3 T"], most: int = 64) -> list[list[float]]:
    """[[mean position from 0, mean loss in nats], …] of at most `most` bins, whose widths grow with the position.

    The sums are those of weight × loss, weight × hits and weight at each position.
    """
    length = sums.shape[1]
    edges = np.unique(np.round(np.geomspace(1, length + 1, most + 1)).astype(int)) - 1
    result = []
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        loss, _, weight = sums[:, start:stop].sum(axis=1)
        if weight > 0:
            result.append([float(start + stop - 1) / 2, float(loss / weight)])
    return result


def diagnose(model: ModelConfig, captured: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """Means over layers, heads and rows of what `capture_attention` gave: `attention_entropy` in nats, `sink_mass` (the
    probability that later tokens give the row's first one), and the largest |logit| before softcap and biases. None
    where no layer has softmax attention.
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
    """Tokens per second of greedy decoding of one row, the best of `rounds`; None where the context has no room."""
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
