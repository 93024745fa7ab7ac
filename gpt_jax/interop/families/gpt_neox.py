"""GPT-NeoX (Black et al. 2022, arXiv:2204.06745) and Pythia."""

from __future__ import annotations

from typing import Any

from gpt_jax import config as cfg
from gpt_jax.interop.families.classic import QKV, classic_settings, layer_norm, mlp
from gpt_jax.interop.families.common import decoder, head_width, require_type
from gpt_jax.interop.family import Family, TensorRow, by_name, fused
from gpt_jax.interop.rope import ROPE_KEYS, read_rope
from gpt_jax.interop.settings import Settings

NAMES = {
    "embedding": "gpt_neox.embed_in",
    "blocks/{}/attention_norm": "gpt_neox.layers.{}.input_layernorm",
    "blocks/{}/attention/output": "gpt_neox.layers.{}.attention.dense",
    "blocks/{}/mlp_norm": "gpt_neox.layers.{}.post_attention_layernorm",
    "blocks/{}/mlp/up": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
    "blocks/{}/mlp/down": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    "final_norm": "gpt_neox.final_layer_norm",
    "head": "lm_head",
}
DEFAULTS: dict[str, Any] = ROPE_KEYS | {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "intermediate_size": 24576,
    "hidden_act": "gelu",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "use_parallel_residual": True,
    "attention_bias": True,
    "partial_rotary_factor": 0.25,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "classifier_dropout": 0.1,
    "tie_word_embeddings": False,
}
ALIASES = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}


def read(s: Settings) -> cfg.ModelConfig:
    norm, dropout = layer_norm(s, "layer_norm_eps"), s.number("hidden_dropout")
    attention = cfg.Attention(
        s.integer("num_attention_heads"),
        position=read_rope(s, head_width(s), partial=True),
        bias=cfg.PROJECTIONS if s.flag("attention_bias") else (),
        dropout=s.number("attention_dropout"),
    )
    residual: Any = "parallel_norms" if s.flag("use_parallel_residual") else "pre"
    block = cfg.BlockConfig(attention, mlp(s, "hidden_act"), norm, residual, dropout)
    return decoder(s, block, norm, cfg.Embedding(dropout=dropout))


def write(model: cfg.ModelConfig) -> dict[str, Any]:
    values = classic_settings(model, DEFAULTS, use_parallel_residual=model.blocks[0].residual == "parallel_norms")
    values["rope_parameters"] = explicit_fraction(values["rope_parameters"])
    return values


def explicit_fraction(group: dict[str, Any]) -> dict[str, Any]:
    """Adds an explicit `partial_rotary_factor` of 1, for families whose default is less."""
    return {"partial_rotary_factor": 1.0} | group


def rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    """Query, key and value of each head in turn form one tensor."""
    heads = require_type(model.blocks[0].attention, cfg.Attention).heads
    name, widths = "gpt_neox.layers.{}.attention.query_key_value", (model.width,) * 3
    return by_name(model, NAMES, fused(model, name, QKV, widths, groups=heads))


IGNORED = ("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq")
FAMILIES = [
    Family(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        DEFAULTS,
        read,
        write,
        rows,
        "gpt_neox.",
        IGNORED,
        aliases=ALIASES,
        renamed={"embed_out.": "lm_head."},
        inert=("attention_probs_dropout_prob", "hidden_dropout_prob"),
    ),
]
