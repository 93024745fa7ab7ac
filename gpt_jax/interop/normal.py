"""A normal form of models: derived values are written out, and factors of 1 are left out."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from typing import Any

from gpt_jax import config as cfg
from gpt_jax.config.conversion import difference, from_dict, to_dict
from gpt_jax.interop.family import plain
from gpt_jax.interop.rope import rope_fraction


def normal_form(model: cfg.ModelConfig) -> cfg.ModelConfig:
    """Returns the normal form of a model.

    Models with equal normal forms compute the same logits from the same parameters, and have the same dropout in
    training.
    """
    model = from_dict(cfg.ModelConfig, to_dict(plain(model)))  # 1 where a float belongs becomes 1.0
    kinds = {block: _block(block, model.width) for block in dict.fromkeys(model.blocks)}
    embedding = replace(model.embedding, scale=_factor(model.embedding.scale))
    if isinstance(embedding.position, cfg.Learned):
        embedding = replace(embedding, position=replace(embedding.position, length=cfg.learned_positions(model)))
    return replace(
        model,
        blocks=tuple(kinds[block] for block in model.blocks),
        embedding=embedding,
        head=replace(model.head, scale=_factor(model.head.scale)),
    )


def differences(wanted: cfg.ModelConfig, found: cfg.ModelConfig) -> dict[str, Any]:
    """Returns the settings of `wanted` that differ in `found` by more than rounding error."""
    pairs = difference(wanted, found)
    return {key: was for key, (was, now) in pairs.items() if not _close(was, now)}


def _close(a: Any, b: Any) -> bool:
    return isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-12)


def without_dropout(model: cfg.ModelConfig) -> cfg.ModelConfig:
    """Returns the model without dropout, which only acts in training and which many families cannot represent."""

    def kept(block: cfg.BlockConfig) -> cfg.BlockConfig:
        attention: Any = block.attention
        if hasattr(attention, "dropout"):
            attention = replace(attention, dropout=0.0)
        return replace(block, attention=attention, dropout=0.0)

    blocks = {block: kept(block) for block in dict.fromkeys(model.blocks)}
    embedding = replace(model.embedding, dropout=0.0)
    return replace(model, blocks=tuple(blocks[block] for block in model.blocks), embedding=embedding)


def _factor(scale: float | None) -> float | None:
    return None if scale == 1.0 else scale


def _block(block: cfg.BlockConfig, width: int) -> cfg.BlockConfig:
    attention: Any = block.attention
    if isinstance(attention, cfg.Attention):
        D = attention.resolved_head_width(width)
        values = attention.value
        if isinstance(values, cfg.Projected | cfg.Shared):
            values = replace(values, width=None if values.width == D else values.width)
        attention = replace(attention, kv_heads=attention.resolved_kv_heads, head_width=D, value=values)
        attention = replace(attention, bias=tuple(p for p in cfg.PROJECTIONS if p in attention.bias))
        attention = _normal_position(attention, D, D)
    elif isinstance(attention, cfg.Latent):
        attention = replace(attention, value_width=attention.resolved_value_width)
        attention = _normal_position(attention, attention.rotary_width, attention.head_width + attention.rotary_width)
    return replace(block, attention=attention, residual_scale=_factor(block.residual_scale))


def _normal_position(attention: Any, rotated: int, scored: int) -> Any:
    """Returns attention in normal form: RoPE with its effective fraction, and no scale equal to the default.

    `rotated` is the width that RoPE's fraction refers to, `scored` the width of queries and keys.
    """
    position, score = attention.position, attention.score
    if isinstance(position, cfg.Rope):
        position = replace(position, fraction=rope_fraction(cfg.rope_width(position, rotated), rotated))
    if score.scale == scored**-0.5:
        score = replace(score, scale=None)
    return dataclasses.replace(attention, position=position, score=score)
