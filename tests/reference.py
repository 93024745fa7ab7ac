"""The whole decoder once more, from the papers' equations: float64 NumPy, one row, one head, one position at a time.

Nothing here comes from `gpt_jax.model`; slow and plain is the point. It takes a ModelConfig and per-layer parameters.
"""

import math
from typing import Any

import numpy as np

from gpt_jax import config

Params = dict[str, Any]


def logits(
    c: config.ModelConfig,
    params: Params,
    tokens: np.ndarray,
    segments: np.ndarray | None = None,
    positions: np.ndarray | None = None,
) -> np.ndarray:
    """(B, T, V) for tokens (B, T)."""
    B, T = tokens.shape
    segments = np.zeros((B, T), int) if segments is None else np.asarray(segments)
    positions = np.tile(np.arange(T), (B, 1)) if positions is None else np.asarray(positions)
    params = as_float64(params)
    return np.stack([_row(c, params, tokens[b], segments[b], positions[b]) for b in range(B)])


def as_float64(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: as_float64(child) for name, child in tree.items()}
    return np.asarray(tree).astype(np.float64)


def _row(c: config.ModelConfig, params: Params, tokens: Any, segments: Any, positions: Any) -> np.ndarray:
    xs = []
    for token, position in zip(tokens, positions, strict=True):
        x = params["embedding"]["table"][token].copy()
        if isinstance(c.embedding.position, config.Learned):
            x += params["embedding"]["position"]["table"][position]
        if isinstance(c.embedding.position, config.Sinusoidal):
            for i in range(c.width // 2):
                angle = position / c.embedding.position.theta ** (2 * i / c.width)
                x[i] += math.sin(angle)
                x[c.width // 2 + i] += math.cos(angle)
        xs.append(norm(c.embedding.norm, params["embedding"].get("norm"), x))
    for layer, block in enumerate(c.blocks):
        xs = _block(c, block, params["blocks"][str(layer)], xs, segments, positions)
    xs = [norm(c.final_norm, params.get("final_norm"), x) for x in xs]
    kernel = params["embedding"]["table"].T if c.head.tied else params["head"]["kernel"]
    out = [x @ kernel + (params["head"]["bias"] if c.head.bias else 0.0) for x in xs]
    if c.head.softcap is not None:
        out = [c.head.softcap * np.tanh(y / c.head.softcap) for y in out]
    return np.stack(out)


def _block(c: config.ModelConfig, block: Any, params: Params, xs: list, segments: Any, positions: Any) -> list:
    def attend(ys: list) -> list:
        ys = convolve(params.get("attention_convolution"), ys, segments)
        return attention(block.attention, params["attention"], ys, segments, positions)

    def feed(ys: list) -> list:
        return [mlp(block.mlp, params["mlp"], y) for y in convolve(params.get("mlp_convolution"), ys, segments)]

    def normed(name: str, ys: list) -> list:
        return [norm(block.norm, params.get(name), y) for y in ys]

    def plus(a: list, b: list) -> list:
        return [x + y for x, y in zip(a, b, strict=True)]

    if block.residual == "parallel":
        ys = normed("norm", xs)
        return plus(plus(xs, attend(ys)), feed(ys))
    for name, sublayer in [("attention", attend)] + ([] if block.mlp is None else [("mlp", feed)]):
        if block.residual == "pre":
            xs = plus(xs, sublayer(normed(f"{name}_norm", xs)))
        elif block.residual == "post":
            xs = normed(f"{name}_norm", plus(xs, sublayer(xs)))
        elif block.residual == "sandwich":
            xs = plus(xs, normed(f"{name}_output_norm", sublayer(normed(f"{name}_norm", xs))))
    return xs


def norm(c: Any, params: Params | None, x: np.ndarray) -> np.ndarray:
    """LayerNorm (Ba et al. 2016, eq. 4) or RMSNorm (Zhang & Sennrich 2019, eq. 4) of one vector."""
    if c is None:
        return x
    if isinstance(c, config.LayerNorm):
        x = x - sum(x) / len(x)
    y = x / math.sqrt(sum(x * x) / len(x) + c.eps)
    if c.scale:
        y = y * params["scale"]
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


def rope(c: config.Rope, x: np.ndarray, position: int) -> np.ndarray:
    """Su et al. 2021, eq. 13 for each plane: the pair as a complex number, times e^(i·m·θ)."""
    y, width = x.copy(), int(c.fraction * len(x)) // 2 * 2
    for i in range(width // 2):
        a, b = (2 * i, 2 * i + 1) if c.interleaved else (i, i + width // 2)
        turned = complex(x[a], x[b]) * np.exp(1j * position * c.theta ** (-2 * i / width))
        y[a], y[b] = turned.real, turned.imag
    return y


def alibi_slopes(heads: int) -> list[float]:
    """Press et al. 2021, section 3, and its footnote's rule where H is no power of two."""
    if heads & (heads - 1) == 0:
        return [2 ** (-8 * h / heads) for h in range(1, heads + 1)]
    below = 2 ** int(math.log2(heads))
    return alibi_slopes(below) + alibi_slopes(2 * below)[::2][: heads - below]


def attention(c: config.Attention, params: Params, xs: list, segments: Any, positions: Any) -> list:
    """Vaswani et al. 2017, eq. 1, head by head and query by query."""
    T, H, K = len(xs), c.heads, c.resolved_kv_heads
    projected = {name: [linear(params[name], x) for x in xs] for name in ("query", "key", "value")}
    projected = {name: convolve(params.get(f"{name}_convolution"), ys, segments) for name, ys in projected.items()}
    D = len(projected["query"][0]) // H
    heads = []
    for h in range(H):
        k = h * K // H  # neighbouring query heads share a key head
        queries = [y[h * D : (h + 1) * D] for y in projected["query"]]
        keys = [y[k * D : (k + 1) * D] for y in projected["key"]]
        values = [y[k * D : (k + 1) * D] for y in projected["value"]]
        queries = [norm(c.score.qk_norm, params.get("query_norm"), q) for q in queries]
        keys = [norm(c.score.qk_norm, params.get("key_norm"), q) for q in keys]
        if isinstance(c.position, config.Rope):
            queries = [rope(c.position, q, m) for q, m in zip(queries, positions, strict=True)]
            keys = [rope(c.position, q, m) for q, m in zip(keys, positions, strict=True)]
        mixed = []
        for t in range(T):
            seen = [s for s in range(T) if may_see(c.mask, t, s) and segments[t] == segments[s]]
            scores = []
            for s in seen:
                score = sum(queries[t] * keys[s]) * (1 / math.sqrt(D) if c.score.scale is None else c.score.scale)
                if c.score.softcap is not None:
                    score = c.score.softcap * math.tanh(score / c.score.softcap)
                if isinstance(c.position, config.Alibi):
                    score += alibi_slopes(H)[h] * (positions[s] - positions[t])
                scores.append(score)
            weights = [math.exp(score - max(scores)) for score in scores]
            mixed.append(sum(w * values[s] for w, s in zip(weights, seen, strict=True)) / sum(weights))
        heads.append(mixed)
    return [linear(params["output"], np.concatenate([heads[h][t] for h in range(H)])) for t in range(T)]


def may_see(mask: config.MaskConfig, t: int, s: int, at_t: int, at_s: int, prefix: int = 0) -> bool:
    """Whether the query at step t sees the key at step s; they stand at positions at_t and at_s of their document."""
    if isinstance(mask, config.Window):
        return s in range(t - mask.size + 1, t + 1)
    if isinstance(mask, config.Chunk):
        return s in range(t - at_t % mask.size, t + 1)
    if isinstance(mask, config.Prefix):
        return s <= t or at_s < prefix
    return s in range(0, t + 1)


def reachable(c: config.ModelConfig, segments: np.ndarray) -> np.ndarray:
    """(T, T): whether token s can reach the output at t through all layers, one sublayer after another."""
    T = len(segments)

    def steps(may: Any) -> np.ndarray:
        return np.array([[may(t, s) and segments[t] == segments[s] for s in range(T)] for t in range(T)], int)

    def back(taps: int | None) -> np.ndarray:
        return steps(lambda t, s: 0 <= t - s < (1 if taps is None else taps))

    reach = np.eye(T, dtype=int)
    for block in c.blocks:
        attend = steps(lambda t, s, mask=block.attention.mask: may_see(mask, t, s))
        attend = attend @ back(block.attention.convolution) @ back(block.convolution)
        feed = np.eye(T, dtype=int) if block.mlp is None else back(block.convolution)
        reach = (attend + feed if block.residual == "parallel" else feed @ attend) @ reach
    return reach > 0


def activate(name: str, x: float) -> float:
    if name == "gelu":
        return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))
    if name == "gelu_tanh":
        return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "silu":
        return x / (1 + math.exp(-x))
    return max(x, 0.0) ** {"relu": 1, "relu2": 2}[name]


def mlp(c: Any, params: Params, x: np.ndarray) -> np.ndarray:
    """Shazeer 2020, eq. 2 and 6."""
    up = linear(params["up"], x)
    gate = linear(params["gate"], x) if isinstance(c, config.GatedMlp) else up
    hidden = np.array([activate(c.activation, y) for y in gate])
    return linear(params["down"], hidden * up if isinstance(c, config.GatedMlp) else hidden)
