"""GLM 4: interleaved RoPE on a part of each head; gate and up projection of the MLP form one tensor."""

from __future__ import annotations

from typing import Any

from gpt_jax import config as cfg
from gpt_jax.interop.families.common import (
    DEFAULTS,
    LLAMA,
    attention,
    common_settings,
    decoder,
    gated,
    head_width,
    require_type,
    rms,
    rope_settings,
)
from gpt_jax.interop.families.llama import QKV, llama_like
from gpt_jax.interop.family import TensorRow, by_name, fused
from gpt_jax.interop.rope import read_rope
from gpt_jax.interop.settings import Settings


def read_glm(s: Settings) -> cfg.ModelConfig:
    return _read(s, "pre")


def read_glm4(s: Settings) -> cfg.ModelConfig:
    """Reads GLM-4-0414, with norms before and after each sublayer."""
    return _read(s, "sandwich")


def _read(s: Settings, residual: str) -> cfg.ModelConfig:
    rope = read_rope(s, head_width(s), interleaved=True, partial=True)
    mixer = attention(s, position=rope, bias=QKV if s.flag("attention_bias") else ())
    return decoder(s, cfg.BlockConfig(mixer, gated(s), rms(s), residual), rms(s))  # type: ignore[arg-type]


def write_glm(model: cfg.ModelConfig) -> dict[str, Any]:
    """Always writes `partial_rotary_factor`, because the family's default is 0.5, not 1."""
    return common_settings(model, GLM, rope_parameters={"partial_rotary_factor": 1.0} | rope_settings(model))


def glm_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    width = require_type(model.blocks[0].mlp, cfg.GatedMlp).width
    both = fused(model, "model.layers.{}.mlp.gate_up_proj", ("mlp/gate", "mlp/up"), (width, width))
    return by_name(model, LLAMA | (SANDWICH if model.blocks[0].residual == "sandwich" else {}), both)


SANDWICH = {
    "blocks/{}/attention_output_norm": "model.layers.{}.post_self_attn_layernorm",
    "blocks/{}/mlp_output_norm": "model.layers.{}.post_mlp_layernorm",
}
GLM = DEFAULTS | {
    "vocab_size": 151552,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-7,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
}

FAMILIES = [
    llama_like("glm", "GlmForCausalLM", GLM, read_glm, write_glm, glm_rows),
    llama_like("glm4", "Glm4ForCausalLM", GLM, read_glm4, write_glm, glm_rows),
]
