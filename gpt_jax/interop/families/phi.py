"""Phi 1, 1.5 and 2, with parallel attention and MLP and with biases; Phi-3 and 4, Llama-like with fused tensors."""

from __future__ import annotations

from typing import Any

from gpt_jax import config as cfg
from gpt_jax.interop.families.classic import QKV, classic_settings, layer_norm, mlp
from gpt_jax.interop.families.common import DEFAULTS as LLAMAS
from gpt_jax.interop.families.common import MLP, PRE, QKVO, STEM, attention, decoder, gated, require_type, rms
from gpt_jax.interop.families.gpt_neox import explicit_fraction
from gpt_jax.interop.family import Family, TensorRow, by_name, fused
from gpt_jax.interop.rope import read_rope
from gpt_jax.interop.settings import Settings

NAMES = (
    STEM
    | QKVO
    | {
        "blocks/{}/norm": "model.layers.{}.input_layernorm",
        "blocks/{}/attention/query_norm": "model.layers.{}.self_attn.q_layernorm",
        "blocks/{}/attention/key_norm": "model.layers.{}.self_attn.k_layernorm",
        "blocks/{}/attention/output": "model.layers.{}.self_attn.dense",
        "blocks/{}/mlp/up": "model.layers.{}.mlp.fc1",
        "blocks/{}/mlp/down": "model.layers.{}.mlp.fc2",
        "final_norm": "model.final_layernorm",
    }
)
PHI3_NAMES = STEM | QKVO | MLP | PRE
COMMON = {key: value for key, value in LLAMAS.items() if key not in ("attention_bias", "rms_norm_eps")}
DROPOUTS = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0}
PHI_DEFAULTS: dict[str, Any] = (
    COMMON
    | DROPOUTS
    | {
        "vocab_size": 51200,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": False,
    }
)
PHI3_DEFAULTS: dict[str, Any] = (
    COMMON
    | DROPOUTS
    | {
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 1.0,
        "sliding_window": None,
        # Keys of older files and of Phi-4's own code; a model that uses them has other tensors.
        "attention_bias": False,
        "mlp_bias": False,
        "lm_head_bias": False,
        "full_attn_mod": 1,
        "interpolate_factor": 1,
    }
)
UNWRITTEN = (
    "rope_scaling rope_theta partial_rotary_factor attention_bias mlp_bias lm_head_bias full_attn_mod"
    " interpolate_factor"
).split()


def read_phi(s: Settings) -> cfg.ModelConfig:
    norm = layer_norm(s, "layer_norm_eps")
    score = cfg.Score(qk_norm=norm if s.flag("qk_layernorm") else None)
    block = cfg.BlockConfig(
        attention(s, partial=True, score=score, bias=cfg.PROJECTIONS),
        mlp(s, "hidden_act"),
        norm,
        "parallel",
        s.number("resid_pdrop"),
    )
    return decoder(s, block, norm, cfg.Embedding(dropout=s.number("embd_pdrop")), bias=True)


def write_phi(model: cfg.ModelConfig) -> dict[str, Any]:
    score = require_type(model.blocks[0].attention, cfg.Attention).score
    return _settings(model, PHI_DEFAULTS, qk_layernorm=score.qk_norm is not None)


def phi_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    return by_name(model, NAMES)


def read_phi3(s: Settings) -> cfg.ModelConfig:
    """Reads Phi-3 and 4, whose original context length stands outside of RoPE's own settings."""
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        s.expect(key, (False, None), "biases in Phi-3")
    D = s.integer("hidden_size") // s.integer("num_attention_heads")
    position = read_rope(s, D, partial=True, original=s.integer("original_max_position_embeddings"))
    W = s.optional_integer("sliding_window")
    mixer = attention(s, position=position, mask=cfg.Causal() if W is None else cfg.Window(W))
    block = cfg.BlockConfig(mixer, gated(s), rms(s), dropout=s.number("resid_pdrop"))
    return decoder(s, block, rms(s), cfg.Embedding(dropout=s.number("embd_pdrop")))


def write_phi3(model: cfg.ModelConfig) -> dict[str, Any]:
    position = require_type(require_type(model.blocks[0].attention, cfg.Attention).position, cfg.Rope)
    values = _settings(model, PHI3_DEFAULTS)
    if isinstance(position.scaling, cfg.LongRope):
        values["original_max_position_embeddings"] = position.scaling.original_length
    return values


def phi3_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    block = model.blocks[0]
    mixer, F = require_type(block.attention, cfg.Attention), require_type(block.mlp, cfg.GatedMlp).width
    D = mixer.resolved_head_width(model.width)
    H, K = mixer.heads, mixer.resolved_kv_heads
    qkv = fused(model, "model.layers.{}.self_attn.qkv_proj", QKV, (H * D, K * D, K * D))
    up = fused(model, "model.layers.{}.mlp.gate_up_proj", ("mlp/gate", "mlp/up"), (F, F))
    return by_name(model, PHI3_NAMES, qkv + up)


def _settings(model: cfg.ModelConfig, defaults: dict[str, Any], **own: Any) -> dict[str, Any]:
    values = classic_settings(model, {key: value for key, value in defaults.items() if key not in UNWRITTEN}, **own)
    return values | {"rope_parameters": explicit_fraction(values["rope_parameters"])}


FAMILIES = [
    Family("phi", "PhiForCausalLM", PHI_DEFAULTS, read_phi, write_phi, phi_rows),
    Family("phi3", "Phi3ForCausalLM", PHI3_DEFAULTS, read_phi3, write_phi3, phi3_rows),
]
