"""The rules of a layer in words and formulas, from its configuration: what a page says beside the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpt_jax import config as cfg


@dataclass(frozen=True)
class Rules:
    """What kind of mixer a layer has, in words; how scores, logits, weights and heads' outputs are made, as formulas
    (None for mixers without them); which keys a query sees; how positions enter; and the residual arrangement.
    """

    kind: str
    about: str
    score: str | None
    logit: str | None
    weight: str
    output: str
    mask: str
    position: str
    residual: str
    mlp: str | None


KINDS = {
    "Attention": "Softmax attention",
    "Differential": "Differential attention",
    "Latent": "Multi-head latent attention",
    "LinearAttention": "Linear attention",
    "Delta": "Gated delta rule",
    "Average": "Mean of all values",
}
EFFECTIVE = (
    "There are no scores. The output is linear in the values, so each weight is exact: how much of a token's value the"
    " output holds. Weights may be negative and need not sum to 1."
)
RESIDUALS = {
    "pre": "x + sublayer(norm(x))",
    "sandwich": "x + norm(sublayer(norm(x)))",
    "output": "x + norm(sublayer(x))",
    "post": "norm(x + sublayer(x))",
    "parallel": "x + attention(norm(x)) + mlp(norm(x))",
    "parallel_norms": "x + attention(norm₁(x)) + mlp(norm₂(x))",
}


def rules_of(model: cfg.ModelConfig, layer: int) -> Rules:
    """The rules of `layer`."""
    block = model.blocks[layer]
    attention: Any = block.attention
    name = type(attention).__name__
    has_scores = isinstance(attention, cfg.Attention | cfg.Latent)
    return Rules(
        kind=KINDS.get(name, name),
        about=_about(attention),
        score="score = factor · Σ q·k" if has_scores else None,
        logit=_logit(attention) if has_scores else None,
        weight=_weight(attention.score) if has_scores else EFFECTIVE,
        output="the difference of the pair, normed" if isinstance(attention, cfg.Differential) else "Σ weight · value",
        mask=_mask(getattr(attention, "mask", cfg.Causal())),
        position=_position(model, getattr(attention, "position", None)),
        residual=RESIDUALS.get(block.residual, block.residual),
        mlp=None if block.mlp is None else type(block.mlp).__name__,
    )


def _about(attention: Any) -> str:
    if isinstance(attention, cfg.Differential):
        H = attention.heads
        return (
            f"{H} heads form {H // 2} pairs, h and h + {H // 2}: the weights of one minus λ times those of the"
            " other, over the values of both, are normed."
        )
    if isinstance(attention, cfg.Attention):
        H, K = attention.heads, attention.resolved_kv_heads
        if isinstance(attention.value, cfg.Shared):
            return f"{H} query heads, which read the keys and values of an earlier layer."
        if K == H:
            return f"Multi-head: each of {H} query heads has keys and values of its own."
        if K == 1:
            return f"Multi-query: {H} query heads share one head of keys and values."
        return f"Grouped-query: {H} query heads, and each group of {H // K} shares one of {K} heads of keys and values."
    if isinstance(attention, cfg.Latent):
        return (
            f"Keys and values of {attention.heads} heads are made from one vector of {attention.rank} numbers for each"
            f" token, and all share a rotated key of width {attention.rotary_width}."
        )
    if isinstance(attention, cfg.LinearAttention):
        return "A state of constant size sums key × value; the query reads it."
    if isinstance(attention, cfg.Delta):
        return "A state of constant size; each token overwrites what was stored under its key, and the query reads it."
    if isinstance(attention, cfg.Average):
        return "Every earlier token counts the same."
    return ""


def _logit(attention: Any) -> str:
    c, terms = attention.score.softcap, []
    start = "score" if c is None else f"{c:g} · tanh(score / {c:g})"
    if isinstance(attention.position, cfg.Alibi):
        terms.append("slope · distance")
    elif isinstance(attention.position, cfg.T5Bias):
        terms.append("bias[distance]")
    if getattr(attention, "forget_gate", False):
        terms.append("Σ log forget")
    if attention.score.normalizer == "sigmoid":
        terms.append("log(1 / context)")
    signs = {"slope · distance": " − "}
    return f"logit = {start}" + "".join(f"{signs.get(term, ' + ')}{term}" for term in terms) + ", −∞ where masked"


def _weight(score: cfg.Score) -> str:
    return {
        "softmax": "p = exp(logit) / Σ exp(logit) over the row",
        "softmax_plus_one": "p = exp(logit) / (1 + Σ exp(logit)): a row may sum to less than 1",
        "sinks": "p = exp(logit) / (exp(sink) + Σ exp(logit)): the sink takes the rest of each row",
        "sigmoid": "p = 1 / (1 + exp(−logit)), each on its own",
    }[score.normalizer]


def _mask(mask: cfg.MaskConfig) -> str:
    match mask:
        case cfg.Window():
            return f"A query sees the last {mask.size} tokens, its own included."
        case cfg.Chunk():
            return f"A query sees the earlier tokens of its chunk of {mask.size}, and its own."
        case cfg.Prefix():
            return "Tokens of the prompt see one another; later ones see all before them."
    return "A query sees its own token and all before it."


def _position(model: cfg.ModelConfig, position: Any) -> str:
    match position:
        case cfg.Rope():
            angle = "pairs of elements turn by an angle that grows with the position"
            return f"Rotation (RoPE, base {position.theta:,.0f}): {angle}."
        case cfg.Alibi():
            return "A slope: the farther the key, the lower its logit (ALiBi)."
        case cfg.T5Bias():
            return "A learned bias for each distance."
    code = model.embedding.position
    added = {"Learned": "A learned vector of the position", "Sinusoidal": "Sines of the position"}
    if code is None:
        return "Nothing here tells positions apart but the order in which they are read."
    return f"{added.get(type(code).__name__, 'A code of the position')} is added to the embedding."
