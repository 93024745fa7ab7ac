"""Granite: Llama with multipliers of embeddings, scores, residual stream and logits."""

from __future__ import annotations

from typing import Any

from gpt_jax import config as cfg
from gpt_jax.config.errors import ConfigError
from gpt_jax.interop.families.common import (
    DEFAULTS,
    FULL,
    LLAMA,
    SLIDING,
    attention,
    common_settings,
    decoder,
    first_attention,
    gated,
    head_width,
    layer_types,
    rms,
    shortest_decimal,
    window,
)
from gpt_jax.interop.families.llama import llama_like
from gpt_jax.interop.family import TensorRow, by_name
from gpt_jax.interop.rope import read_rope
from gpt_jax.interop.settings import Settings, checked_number


def read_granite(s: Settings) -> cfg.ModelConfig:
    return granite_decoder(s, granite_block(s, attention(s, score=cfg.Score(s.number("attention_multiplier")))))


def granite_block(s: Settings, mixer: cfg.Attention) -> cfg.BlockConfig:
    return cfg.BlockConfig(mixer, gated(s), rms(s), residual_scale=s.number("residual_multiplier"))


def granite_decoder(s: Settings, blocks: cfg.BlockConfig | list[cfg.BlockConfig]) -> cfg.ModelConfig:
    embedding = cfg.Embedding(scale=s.number("embedding_multiplier"))
    return decoder(s, blocks, rms(s), embedding, scale=1 / s.number("logits_scaling"))


def read_granite_swa(s: Settings) -> cfg.ModelConfig:
    """Reads Granite with windows, attention sinks and a RoPE theta per layer, where 0 means no RoPE."""
    L = s.integer("num_hidden_layers")
    kinds = layer_types(s, [FULL if i % 4 == 0 else SLIDING for i in range(L)])
    key = "layer_rope_theta"
    thetas = [None] * L if s[key] is None else [checked_number(key, theta, 0) for theta in s.listed(key)]
    if len(thetas) != L:
        raise ConfigError(f'config.json has {len(thetas)} values of "layer_rope_theta" for {L} layers')
    score = cfg.Score(s.number("attention_multiplier"), normalizer="sinks")

    def mixer(kind: str, theta: float | None) -> cfg.Attention:
        position = None if theta == 0 else read_rope(s, head_width(s), theta=theta)
        return attention(s, position=position, mask=window(s, kind), score=score)

    pairs = zip(kinds, thetas, strict=True)
    return granite_decoder(s, [granite_block(s, mixer(kind, theta)) for kind, theta in pairs])


def granite_multipliers(model: cfg.ModelConfig) -> dict[str, Any]:
    block = model.blocks[0]
    mixer, head = first_attention(model), model.head.scale
    scale = mixer.resolved_head_width(model.width) ** -0.5 if mixer.score.scale is None else mixer.score.scale
    return {
        "attention_multiplier": scale,
        "embedding_multiplier": 1.0 if model.embedding.scale is None else model.embedding.scale,
        "residual_multiplier": 1.0 if block.residual_scale is None else block.residual_scale,
        "logits_scaling": 1.0 if head is None else shortest_decimal(1 / head, lambda x: 1 / x, head),
    }


def write_granite(model: cfg.ModelConfig) -> dict[str, Any]:
    return common_settings(model, GRANITE, **granite_multipliers(model))


def write_granite_swa(model: cfg.ModelConfig) -> dict[str, Any]:
    ropes = [getattr(mixer, "position", None) for mixer in model.attentions]
    thetas = [rope.theta if isinstance(rope, cfg.Rope) else 0.0 for rope in ropes]
    return common_settings(model, GRANITE_SWA, layer_rope_theta=thetas, **granite_multipliers(model))


def granite_swa_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    return by_name(model, LLAMA | {"blocks/{}/attention/sinks": "model.layers.{}.self_attn.sinks"})


MULTIPLIERS = ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")
GRANITE = DEFAULTS | {"mlp_bias": False} | dict.fromkeys(MULTIPLIERS, 1.0)
GRANITE_SWA = GRANITE | {
    "vocab_size": 100352,
    "hidden_size": 2560,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "sliding_window": 128,
    "layer_types": None,
    "layer_rope_theta": None,
}

FAMILIES = [
    llama_like("granite", "GraniteForCausalLM", GRANITE, read_granite, write_granite),
    llama_like(
        "granite_swa", "GraniteSWAForCausalLM", GRANITE_SWA, read_granite_swa, write_granite_swa, granite_swa_rows
    ),
]
