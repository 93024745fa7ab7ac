"""Cohere's Command R and R7B: parallel attention and MLP, interleaved RoPE, scaled logits."""

from __future__ import annotations

from typing import Any

from gpt_jax import config as cfg
from gpt_jax.interop.families.common import (
    DEFAULTS,
    FULL,
    LLAMA,
    QK,
    SLIDING,
    attention,
    common_settings,
    decoder,
    first_attention,
    gated,
    head_width,
    layer_types,
    window,
)
from gpt_jax.interop.families.llama import llama_like
from gpt_jax.interop.family import TensorRow, by_name
from gpt_jax.interop.rope import read_rope
from gpt_jax.interop.settings import Settings


def layer_norm(s: Settings) -> cfg.LayerNorm:
    return cfg.LayerNorm(s.number("layer_norm_eps"), bias=False)


def read_cohere(s: Settings) -> cfg.ModelConfig:
    """Reads Command R; Command R+ also has query and key norms with a separate scale per head."""
    norm = layer_norm(s)
    score = cfg.Score(qk_norm=norm, qk_norm_over="heads") if s.flag("use_qk_norm") else cfg.Score()
    mixer = attention(s, position=read_rope(s, head_width(s), interleaved=True), score=score)
    return decoder(s, cfg.BlockConfig(mixer, gated(s), norm, "parallel"), norm, scale=s.number("logit_scale"))


def read_cohere2(s: Settings) -> cfg.ModelConfig:
    """Reads Command R7B, in which only layers with a window have RoPE."""
    L, every, norm = s.integer("num_hidden_layers"), s.integer("sliding_window_pattern"), layer_norm(s)
    kinds = layer_types(s, [SLIDING if (i + 1) % every else FULL for i in range(L)])
    rope = read_rope(s, head_width(s), interleaved=True)

    def block(kind: str) -> cfg.BlockConfig:
        mixer = attention(s, position=rope if kind == SLIDING else None, mask=window(s, kind))
        return cfg.BlockConfig(mixer, gated(s), norm, "parallel")

    return decoder(s, [block(kind) for kind in kinds], norm, scale=s.number("logit_scale"))


def write_cohere(model: cfg.ModelConfig) -> dict[str, Any]:
    return common_settings(
        model, COHERE, use_qk_norm=first_attention(model).score.qk_norm is not None, logit_scale=_scale(model)
    )


def write_cohere2(model: cfg.ModelConfig) -> dict[str, Any]:
    return common_settings(model, COHERE2, logit_scale=_scale(model))


def _scale(model: cfg.ModelConfig) -> float:
    return 1.0 if model.head.scale is None else model.head.scale


def cohere_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    return by_name(model, LLAMA | QK | {"blocks/{}/norm": "model.layers.{}.input_layernorm"})


COHERE = {key: value for key, value in DEFAULTS.items() if key != "rms_norm_eps"} | {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
    "logit_scale": 0.0625,
    "use_qk_norm": False,
}
COHERE2 = {key: value for key, value in COHERE.items() if key != "use_qk_norm"} | {
    "rope_theta": 10_000.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "layer_types": None,
    "_sliding_window_pattern": None,
}
# keys of published files
COHERE2_FIXED = {
    "layer_switch": 4,
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_parallel_embedding": False,
}

FAMILIES = [
    llama_like("cohere", "CohereForCausalLM", COHERE, read_cohere, write_cohere, cohere_rows),
    llama_like("cohere2", "Cohere2ForCausalLM", COHERE2, read_cohere2, write_cohere2, cohere_rows, COHERE2_FIXED),
]
