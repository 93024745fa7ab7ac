"""The whole decoder once more, from the papers' equations: float64 NumPy, one row, one head, one position at a time.

Nothing here comes from `gpt_jax.model`; slow and plain is the point. It takes a ModelConfig and per-layer parameters.
"""

import math
from typing import Any

import numpy as np

from gpt_jax import config
from tests.reference_attention import Row, attention, convolve, latent, linear, may_see, norm
from tests.reference_recurrent import average, gated_delta, linear_attention

Params = dict[str, Any]
SUBLAYERS = {
    config.Attention: attention,
    config.Differential: attention,
    config.Latent: latent,
    config.LinearAttention: linear_attention,
    config.Delta: gated_delta,
    config.Average: average,
}


def logits(
    c: config.ModelConfig,
    params: Params,
    tokens: np.ndarray,
    segments: np.ndarray | None = None,
    positions: np.ndarray | None = None,
    prefix: np.ndarray | None = None,
    length: int | None = None,
) -> np.ndarray:
    """(B, T, V) for tokens (B, T); `length` is the one declared to positions that go by it, None: T."""
    B, T = tokens.shape
    segments = np.zeros((B, T), int) if segments is None else np.asarray(segments)
    positions = np.tile(np.arange(T), (B, 1)) if positions is None else np.asarray(positions)
    prefix = np.zeros(B, int) if prefix is None else np.asarray(prefix)
    params, length = as_float64(params), T if length is None else length
    rows = [Row(tokens[b], segments[b], positions[b], int(prefix[b]), length, c) for b in range(B)]
    return np.stack([_row(c, params, row) for row in rows])


def as_float64(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: as_float64(child) for name, child in tree.items()}
    return np.asarray(tree).astype(np.float64)


def _row(c: config.ModelConfig, params: Params, row: Row) -> np.ndarray:
    xs = []
    for token, position in zip(row.tokens, row.positions, strict=True):
        x = params["embedding"]["table"][token] * (1 if c.embedding.scale is None else c.embedding.scale)
        if isinstance(c.embedding.position, config.Learned):
            x = x + params["embedding"]["position"]["table"][position + c.embedding.position.offset]
        if isinstance(c.embedding.position, config.Sinusoidal):
            for i in range(c.width // 2):
                code = c.embedding.position
                angle = (position + code.offset) / code.theta ** (2 * i / (c.width - 2 * code.endpoint))
                x[i] += math.sin(angle)
                x[c.width // 2 + i] += math.cos(angle)
        xs.append(norm(c.embedding.norm, params["embedding"].get("norm"), x))
    for layer, block in enumerate(c.blocks):
        row.layer = layer
        xs = _block(block, params["blocks"][str(layer)], xs, row)
    xs = [norm(c.final_norm, params.get("final_norm"), x) for x in xs]
    kernel = params["embedding"]["table"].T if c.head.tied else params["head"]["kernel"]
    out = [x @ kernel + (params["head"]["bias"] if c.head.bias else 0.0) for x in xs]
    out = [y * (1 if c.head.scale is None else c.head.scale) for y in out]
    if c.head.softcap is not None:
        out = [c.head.softcap * np.tanh(y / c.head.softcap) for y in out]
    return np.stack(out)


def _block(block: config.BlockConfig, params: Params, xs: list, row: Row) -> list:
    def attend(ys: list) -> list:
        ys = convolve(params.get("attention_convolution"), ys, row.segments)
        return SUBLAYERS[type(block.attention)](block.attention, params["attention"], ys, row)

    def feed(ys: list) -> list:
        return [mlp(block.mlp, params["mlp"], y) for y in convolve(params.get("mlp_convolution"), ys, row.segments)]

    def normed(name: str, ys: list) -> list:
        return [norm(block.norm, params.get(name), y) for y in ys]

    def plus(a: list, b: list) -> list:
        factor = 1 if block.residual_scale is None else block.residual_scale
        return [x + factor * y for x, y in zip(a, b, strict=True)]

    if block.residual.startswith("parallel"):
        first, second = ("norm", "norm") if block.residual == "parallel" else ("attention_norm", "mlp_norm")
        return plus(plus(xs, attend(normed(first, xs))), feed(normed(second, xs)))
    for name, sublayer in [("attention", attend)] + ([] if block.mlp is None else [("mlp", feed)]):
        if block.residual == "pre":
            xs = plus(xs, sublayer(normed(f"{name}_norm", xs)))
        elif block.residual == "post":
            xs = normed(f"{name}_norm", plus(xs, sublayer(xs)))
        elif block.residual == "sandwich":
            xs = plus(xs, normed(f"{name}_output_norm", sublayer(normed(f"{name}_norm", xs))))
        elif block.residual == "output":
            xs = plus(xs, normed(f"{name}_output_norm", sublayer(xs)))
    return xs


def reachable(c: config.ModelConfig, segments: np.ndarray, positions: np.ndarray, prefix: int = 0) -> np.ndarray:
    """(T, T): whether token s can reach the output at t through all layers, one sublayer after another."""
    T = len(segments)

    def steps(may: Any) -> np.ndarray:
        return np.array([[may(t, s) and segments[t] == segments[s] for s in range(T)] for t in range(T)], int)

    def back(taps: int | None) -> np.ndarray:
        return steps(lambda t, s: 0 <= t - s < (1 if taps is None else taps))

    def attended(attention: Any) -> np.ndarray:
        mask = getattr(attention, "mask", config.Causal())  # a recurrent state holds all that came before
        return steps(lambda t, s: may_see(mask, t, s, positions[t], positions[s], prefix))

    reach = keys = np.eye(T, dtype=int)
    for block in c.blocks:
        attention, before = block.attention, back(block.convolution)
        inside = back(getattr(attention, "convolution", None)) @ before @ reach
        keys = keys if isinstance(getattr(attention, "value", None), config.Shared) else inside
        attend = attended(attention) @ keys + inside + reach
        feed = np.eye(T, dtype=int) if block.mlp is None else before
        reach = attend + feed @ reach if block.residual.startswith("parallel") else feed @ attend
        reach = (reach > 0).astype(int)
    return reach > 0


def activate(name: str, x: float) -> float:
    if name == "gelu":
        return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))
    if name == "gelu_tanh":
        return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "silu":
        return x / (1 + math.exp(-x))
    return max(x, 0.0) ** {"relu": 1, "relu2": 2}[name]


def xielu(params: Params, x: float) -> float:
    """Huang & Schlag 2024, eq. 13, with β = 0.5."""
    above, below = (math.log1p(math.exp(params[f"alpha_{side}"])) for side in "pn")
    return above * x * x + 0.5 * x if x > 0 else (below + 0.5) * (math.exp(x) - 1 - x) + 0.5 * x


def mlp(c: Any, params: Params, x: np.ndarray) -> np.ndarray:
    """Shazeer 2020, eq. 2 and 6."""
    up = linear(params["up"], x)
    gate = linear(params["gate"], x) if isinstance(c, config.GatedMlp) else up
    hidden = np.array(
        [xielu(params["xielu"], y) if c.activation == "xielu" else activate(c.activation, y) for y in gate]
    )
    return linear(params["down"], hidden * up if isinstance(c, config.GatedMlp) else hidden)
