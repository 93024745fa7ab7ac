"""The sublayers with a state once more, from the papers' equations: float64 NumPy, one head and one position at a time.

T vectors in, T vectors out, as in `tests/reference_attention.py`. A document is a run of like segment numbers.
"""

import math
from typing import Any

import numpy as np

from gpt_jax import config
from tests.reference_attention import Row, convolve, linear, norm, sigmoid
from tests.reference_positions import rope

Params = dict[str, Any]


def linear_attention(c: config.LinearAttention, params: Params, xs: list, row: Row) -> list:
    """Katharopoulos et al. 2020, eq. 8, as sums over pairs; with decay Sun et al. 2023 (RetNet), eq. 5."""
    T, H = len(xs), c.heads
    queries, keys, values = (_heads(c, params, name, xs, row, H) for name in ("query", "key", "value"))
    decays = [decay(c, params, x) for x in xs]

    def turned(y: np.ndarray, t: int) -> np.ndarray:
        return y if c.position is None else rope(c.position, y, row.positions[t], row.length)

    out = []
    for t in range(T):
        mixed = []
        for h in range(H):
            query, total, divisor = feature_map(c.feature_map, queries[t][h]), 0.0, 0.0
            for s in _document(row.segments, t):
                key, left = feature_map(c.feature_map, keys[s][h]), math.prod(decays[j][h] for j in range(s + 1, t + 1))
                total = total + left * sum(turned(query, t) * turned(key, s)) * values[s][h]
                divisor += left * sum(query * key)  # Su et al. 2021, eq. 19: not rotated
            mixed.append(total / (divisor + 1e-6) if c.normalize else total / math.sqrt(len(query)))
        out.append(_finish(c, params, xs[t], mixed))
    return out


def gated_delta(c: config.Delta, params: Params, xs: list, row: Row) -> list:
    """Yang, Kautz and Hatamizadeh 2024, the gated delta rule with S (E, D) as there, and the block around it."""
    H, K = c.heads, c.resolved_key_heads
    queries, keys = (_heads(c, params, name, xs, row, K) for name in ("query", "key"))
    values = _heads(c, params, "value", xs, row, H)
    states: list[Any] = [None] * H
    out = []
    for t, x in enumerate(xs):
        mixed = []
        alpha, beta = decay(c, params, x), sigmoid(linear(params["beta"], x))
        beta = 2 * beta if c.negative else beta
        for h in range(H):
            q, k, v = queries[t][h * K // H], keys[t][h * K // H], silu(values[t][h])
            q, k = (silu(y) / np.sqrt(sum(silu(y) ** 2) + 1e-6) for y in (q, k))
            if t == 0 or row.segments[t] != row.segments[t - 1]:
                states[h] = np.zeros((len(v), len(k)))
            states[h] = states[h] @ (alpha[h] * (np.eye(len(k)) - beta[h] * np.outer(k, k))) + beta[h] * np.outer(v, k)
            mixed.append(states[h] @ q / math.sqrt(len(q)))
        out.append(_finish(c, params, x, mixed))
    return out


def _heads(c: Any, params: Params, name: str, xs: list, row: Row, heads: int) -> list:
    ys = convolve(params.get(f"{name}_convolution"), [linear(params[name], x) for x in xs], row.segments)
    return [np.split(y, heads) for y in ys]


def _document(segments: Any, t: int) -> range:
    """The positions of the document of t, up to t."""
    first = t
    while first > 0 and segments[first - 1] == segments[t]:
        first -= 1
    return range(first, t + 1)


def _finish(c: Any, params: Params, x: np.ndarray, mixed: list) -> np.ndarray:
    out = np.concatenate([norm(c.output_norm, params.get("output_norm"), y) for y in mixed])
    if c.gate is not None:
        gate = linear(params["gate"], x)
        out = out * (silu(gate) if c.gate == "silu" else sigmoid(gate))
    return linear(params["output"], out)


def decay(c: Any, params: Params, x: np.ndarray) -> list[float]:
    """What is left of each head's state at the token x (RetNet, eq. 8; Mamba-2: Dao & Gu 2024)."""
    if c.decay is None:
        return [1.0] * c.heads
    if c.decay == "fixed":
        return [1 - 2.0 ** (-5 - h) for h in range(c.heads)]
    p = params["decay"]
    step = np.log(1 + np.exp(linear(p["step"], x) + p["bias"]))
    return list(np.exp(-np.exp(p["log_rate"]) * step))


def feature_map(name: str | None, x: np.ndarray) -> np.ndarray:
    match name:
        case None:
            return x
        case "elu":
            return np.where(x > 0, x, np.exp(x) - 1) + 1
        case "relu":
            return np.maximum(x, 0)
    return silu(x)


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def average(c: config.Average, params: Params, xs: list, row: Row) -> list:
    """Zhang et al. 2018, eq. 1: the mean of the document's values up to each."""
    values = [linear(params["value"], x) for x in xs]
    means = [np.mean([values[s] for s in _document(row.segments, t)], axis=0) for t in range(len(xs))]
    return [linear(params["output"], mean) for mean in means]
