"""Attention as its papers write it: one head, one query, one key at a time, in float64.

A sublayer takes the T vectors of a row and gives T vectors; `row` says where they stand.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from gpt_jax import config
from tests import reference_positions as positions

Params = dict[str, Any]


@dataclasses.dataclass
class Row:
    """One row of the batch: ids, documents, positions, how many of its first tokens are a prefix, the length that is
    declared to positions, the model and the layer that looks, and what layers below have left.
    """

    tokens: Any
    segments: Any
    positions: Any
    prefix: int
    length: int
    model: config.ModelConfig
    layer: int = 0
    left: dict[str, Any] = dataclasses.field(default_factory=dict)

    def sees(self, mask: config.MaskConfig, t: int, s: int) -> bool:
        at = self.positions[t], self.positions[s]
        return may_see(mask, t, s, *at, self.prefix) and self.segments[t] == self.segments[s]


def norm(c: Any, params: Params | None, x: np.ndarray) -> np.ndarray:
    """LayerNorm (Ba et al. 2016, eq. 4) or RMSNorm (Zhang & Sennrich 2019, eq. 4) of one vector."""
    if c is None:
        return x
    if isinstance(c, config.LayerNorm):
        x = x - sum(x) / len(x)
    y = x / math.sqrt(sum(x * x) / len(x) + c.eps)
    if c.scale:
        y = y * (params["scale"] + (1 if c.unit_offset else 0))
    if isinstance(c, config.LayerNorm) and c.bias:
        y = y + params["bias"]
    return y


def linear(params: Params, x: np.ndarray) -> np.ndarray:
    return x @ params["kernel"] + params.get("bias", 0.0)


def convolve(params: Params | None, xs: list, segments: Any) -> list:
    """Allen-Zhu 2025, Canon layers: each vector plus a weighted sum of itself and the few before it."""
    if params is None:
        return xs
    out = []
    for t, x in enumerate(xs):
        y = x.copy()
        for lag, weights in enumerate(params["taps"]):
            if t - lag >= 0 and segments[t - lag] == segments[t]:
                y += weights * xs[t - lag]
        out.append(y)
    return out


def may_see(mask: config.MaskConfig, t: int, s: int, at_t: int, at_s: int, prefix: int = 0) -> bool:
    """Whether the query at step t sees the key at step s; they stand at positions at_t and at_s of their document."""
    if isinstance(mask, config.Window):
        return s in range(t - mask.size + 1, t + 1)
    if isinstance(mask, config.Chunk):
        return s in range(t - at_t % mask.size, t + 1)
    if isinstance(mask, config.Prefix):
        return s <= t or at_s < prefix
    return s in range(0, t + 1)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def temperature(c: config.Score, params: Params, h: int, row: Row, t: int, mask: Any) -> float:
    """What a query's scores are multiplied by, beside the scale."""
    match c.temperature:
        case config.LogTemperature(strength, length):
            return 1 + strength * math.log(1 + row.positions[t] // length)
        case config.Ssmax():  # Nakanishi 2025, eq. 3
            in_sight = sum(row.sees(mask, t, s) for s in range(t + 1))
            return float(params["ssmax"]["s"][h]) * math.log(in_sight)
    return 1.0


def weights(c: Any, params: Params, h: int, H: int, row: Row, t: int, q: np.ndarray, ks: list, faded: Any) -> dict:
    """Key → weight, for head h of the query at t; `faded(s)` is what a forget gate adds to the score of key s."""
    score, logits = c.score, {}
    for s in range(len(ks)):
        if not row.sees(c.mask, t, s):
            continue
        x = float(sum(q * ks[s]))
        if score.softcap is not None:
            x = score.softcap * math.tanh(x / score.softcap)
        table = params.get("position", {}).get("table")
        x += positions.bias(c.position, table, h, H, int(row.positions[t]), int(row.positions[s]))
        logits[s] = x + faded(s)
    if score.normalizer == "sigmoid":  # Ramapuram et al. 2024, eq. 3 with b = −log n
        return {s: sigmoid(x - math.log(row.model.context_length)) for s, x in logits.items()}
    rest = {"softmax": 0.0, "softmax_plus_one": 1.0}.get(score.normalizer)
    rest = math.exp(params["sinks"]["logits"][h]) if rest is None else rest
    total = sum(math.exp(x) for x in logits.values()) + rest
    return {s: math.exp(x) / total for s, x in logits.items()}


def attention(c: config.Attention, params: Params, xs: list, row: Row) -> list:
    """Vaswani et al. 2017, eq. 1, and what `config.Attention` adds to it."""
    T, H, K = len(xs), c.heads, c.resolved_kv_heads
    D, E = c.resolved_head_width(row.model.width), c.resolved_value_width(row.model.width)

    def projected(name: str, heads: int, width: int) -> np.ndarray:
        ys = [linear(params[name], x) for x in xs]
        ys = ys if c.clip is None else [np.clip(y, -c.clip, c.clip) for y in ys]
        return np.array(convolve(params.get(f"{name}_convolution"), ys, row.segments)).reshape(T, heads, width)

    def normed(name: str, y: np.ndarray) -> np.ndarray:  # (heads, D) of one token
        p, qk = params.get(f"{name}_norm"), c.score.qk_norm
        if c.score.qk_norm_over == "width":
            return norm(qk, p, y.reshape(-1)).reshape(y.shape)
        if c.score.qk_norm_over == "heads":
            each = [p and {leaf: value[h] for leaf, value in p.items()} for h in range(len(y))]
            return np.array([norm(qk, each[h], y[h]) for h in range(len(y))])
        return np.array([norm(qk, p, head) for head in y])

    def placed(name: str, y: np.ndarray) -> np.ndarray:
        out = []
        for t in range(T):
            z = y[t] if c.score.qk_norm_last else normed(name, y[t])
            if isinstance(c.position, config.Rope):
                z = np.array([positions.rope(c.position, head, row.positions[t], row.length) for head in z])
            out.append(normed(name, z) if c.score.qk_norm_last else z)
        return np.array(out)

    queries = placed("query", projected("query", H, D))
    if isinstance(c.value, config.Shared):
        keys, values = row.left["key_and_value"]
    else:
        raw = projected("key", K, D)
        made = isinstance(c.value, config.Projected)
        keys, values = placed("key", raw), projected("value", K, E) if made else raw
        if made and c.value.embedding is not None:
            values = values + np.array([params["value_embedding"]["table"][i] for i in row.tokens]).reshape(T, K, E)
        if made and c.value.residual is not None:  # Zhou et al. 2024, with shares that add up to 1
            first = row.left.setdefault("value", values)
            share = params["value_residual"]["share"]
            values = (1 - share) * values + share * first
        row.left["key_and_value"] = keys, values
    forget = np.ones((T, H))
    if c.forget_gate:
        forget = np.array([sigmoid(linear(params["forget"], x)) for x in xs])

    scale = 1 / math.sqrt(D) if c.score.scale is None else c.score.scale
    maps = []  # of each head and query: key → weight
    for h in range(H):
        rows = []
        for t in range(T):
            factor = scale * temperature(c.score, params, h, row, t, c.mask)

            def faded(s: int, h: int = h, t: int = t) -> float:  # Lin et al. 2025, eq. 6
                return sum(math.log(forget[u, h]) for u in range(s + 1, t + 1))

            rows.append(weights(c, params, h, H, row, t, queries[t, h] * factor, list(keys[:, h * K // H]), faded))
        maps.append(rows)
    if isinstance(c, config.Differential):
        heads = differential(c, params, maps, values, row)
    else:
        heads = [[sum(w * values[s, h * K // H] for s, w in maps[h][t].items()) for t in range(T)] for h in range(H)]
    out = []
    for t in range(T):
        y = np.concatenate([heads[h][t] for h in range(len(heads))])
        if c.gate is not None:
            gate = sigmoid(linear(params["gate"], xs[t]))
            y = y * (gate if isinstance(c.gate, config.ElementwiseGate) else np.repeat(gate, len(y) // H))
        out.append(linear(params["output"], y))
    return out


def differential(c: config.Differential, params: Params, maps: list, values: np.ndarray, row: Row) -> list:
    """Ye et al. 2024, eq. 1–3: half as many heads, each with the values of two."""
    H, K = c.heads, c.resolved_kv_heads
    base = 0.8 - 0.6 * math.exp(-0.3 * row.layer)
    dot = [math.exp(sum(params[f"lambda_query{n}"]["vector"] * params[f"lambda_key{n}"]["vector"])) for n in (1, 2)]
    weight = dot[0] - dot[1] + base
    heads = []
    for h in range(H // 2):
        k = h * K // H
        both = [np.concatenate([values[s, k], values[s, k + K // 2]]) for s in range(len(values))]
        outputs = []
        for t in range(len(values)):
            first, second = maps[h][t], maps[h + H // 2][t]
            mixed = sum((first[s] - weight * second[s]) * both[s] for s in first)
            outputs.append((1 - base) * norm(c.norm, params.get("head_norm"), mixed))
        heads.append(outputs)
    return heads


def latent(c: config.Latent, params: Params, xs: list, row: Row) -> list:
    """DeepSeek-V2 2024, eq. 9–19, head by head, nothing absorbed."""
    T, H, D, E = len(xs), c.heads, c.head_width, c.resolved_value_width
    turn = [
        lambda y, at=at: y if c.position is None else positions.rope(c.position, y, at, row.length)
        for at in row.positions
    ]
    down = xs
    if c.query_rank is not None:
        down = [norm(c.norm, params.get("query_latent_norm"), linear(params["query_latent"], x)) for x in xs]
    queries = np.array([linear(params["query"], x) for x in down]).reshape(T, H, D + c.rotary_width)
    latents = [norm(c.norm, params.get("latent_norm"), linear(params["latent"], x)) for x in xs]
    turned = [turn[t](linear(params["rotary_key"], xs[t])) for t in range(T)]
    keys = np.array([linear(params["key"], y) for y in latents]).reshape(T, H, D)
    values = np.array([linear(params["value"], y) for y in latents]).reshape(T, H, E)
    scale = (D + c.rotary_width) ** -0.5 if c.score.scale is None else c.score.scale
    out = []
    for t in range(T):
        heads = []
        for h in range(H):
            q = np.concatenate([queries[t, h, :D], turn[t](queries[t, h, D:])]) * scale
            q = q * temperature(c.score, params, h, row, t, c.mask)
            ks = [np.concatenate([keys[s, h], turned[s]]) for s in range(T)]
            seen = weights(c, params, h, H, row, t, q, ks, lambda s: 0.0)
            heads.append(sum(w * values[s, h] for s, w in seen.items()))
        out.append(linear(params["output"], np.concatenate(heads)))
    return out
