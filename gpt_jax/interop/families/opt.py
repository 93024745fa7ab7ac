"""OPT (Zhang et al. 2022, arXiv:2205.01068) and XGLM (Lin et al. 2021, arXiv:2112.10668), both built with fairseq."""

from __future__ import annotations

import math
from typing import Any

from gpt_jax import config as cfg
from gpt_jax.config.errors import ConfigError
from gpt_jax.interop.families.classic import classic_settings, mlp
from gpt_jax.interop.families.common import decoder, require_type
from gpt_jax.interop.family import Family, TensorRow, by_name
from gpt_jax.interop.settings import Settings

OFFSET = 2  # positions start in row 2 of the table, because padding ids used rows 0 and 1
BLOCK = {
    "attention_norm": "self_attn_layer_norm",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/output": "self_attn.out_proj",
    "mlp_norm": "final_layer_norm",
    "mlp/up": "fc1",
    "mlp/down": "fc2",
}
OPT_NAMES = {
    "embedding": "model.decoder.embed_tokens",
    "embedding/position": "model.decoder.embed_positions",
    **{f"blocks/{{}}/{ours}": f"model.decoder.layers.{{}}.{theirs}" for ours, theirs in BLOCK.items()},
    "final_norm": "model.decoder.final_layer_norm",
    "head": "lm_head",
}
XGLM_NAMES = {
    "embedding": "model.embed_tokens",
    **{f"blocks/{{}}/{ours}": f"model.layers.{{}}.{theirs}" for ours, theirs in BLOCK.items()},
    "final_norm": "model.layer_norm",
    "head": "lm_head",
}
OPT_SPELLING = {"ffn_dim": "intermediate_size"}
XGLM_SPELLING = {
    "ffn_dim": "intermediate_size",
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "attention_heads": "num_attention_heads",
}
DEFAULTS: dict[str, Any] = {
    "attention_dropout": 0.0,
    "dropout": 0.1,
    "activation_dropout": 0.0,  # inside MLPs; like layerdrop, only in training
    "layerdrop": 0.0,
    "init_std": 0.02,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
OPT_DEFAULTS = DEFAULTS | {
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "word_embed_proj_dim": None,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
}
XGLM_DEFAULTS = DEFAULTS | {
    "vocab_size": 256008,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "activation_function": "gelu",
    "attention_dropout": 0.1,
    "scale_embedding": True,
    "pad_token_id": 1,
}
UNWRITTEN = ("activation_dropout", "layerdrop", "init_std", "pad_token_id")


def read_opt(s: Settings) -> cfg.ModelConfig:
    C = s.integer("hidden_size")
    s.expect("word_embed_proj_dim", (None, C), "projection between embeddings and blocks of other widths")
    has_weights, bias = s.flag("layer_norm_elementwise_affine"), s.flag("enable_bias")
    norm = cfg.LayerNorm(scale=has_weights, bias=has_weights)
    attention = cfg.Attention(
        s.integer("num_attention_heads"),
        bias=cfg.PROJECTIONS if bias else (),
        dropout=s.number("attention_dropout"),
    )
    is_pre = s.flag("do_layer_norm_before")
    block = cfg.BlockConfig(attention, mlp(s, bias=bias), norm, "pre" if is_pre else "post", s.number("dropout"))
    final_norm = norm if is_pre and not s.flag("_remove_final_layer_norm") else None
    return decoder(s, block, final_norm, cfg.Embedding(cfg.Learned(offset=OFFSET)))


def write_opt(model: cfg.ModelConfig) -> dict[str, Any]:
    block = model.blocks[0]
    norm, is_pre = require_type(block.norm, cfg.LayerNorm), block.residual == "pre"
    return _settings(
        model,
        OPT_DEFAULTS,
        OPT_SPELLING,
        do_layer_norm_before=is_pre,
        _remove_final_layer_norm=is_pre and model.final_norm is None,
        word_embed_proj_dim=model.width,
        enable_bias=require_type(block.mlp, cfg.Mlp).bias,
        layer_norm_elementwise_affine=norm.scale,
    )


def opt_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    return by_name(model, OPT_NAMES)


def read_xglm(s: Settings) -> cfg.ModelConfig:
    """Reads XGLM. `transformers` zeroes the row of the sinusoidal table that `pad_token_id` names."""
    pad = s.optional_integer("pad_token_id")
    if pad is not None and pad >= OFFSET:
        raise ConfigError(
            f'config.json has "pad_token_id": {pad}, so position {pad - OFFSET} has no code, which gpt_jax cannot do'
        )
    norm, dropout = cfg.LayerNorm(), s.number("dropout")
    attention = cfg.Attention(
        s.integer("num_attention_heads"), bias=cfg.PROJECTIONS, dropout=s.number("attention_dropout")
    )
    embedding = cfg.Embedding(
        cfg.Sinusoidal(endpoint=True, offset=OFFSET),
        dropout=dropout,
        scale=math.sqrt(s.integer("hidden_size")) if s.flag("scale_embedding") else None,
    )
    return decoder(s, cfg.BlockConfig(attention, mlp(s), norm, dropout=dropout), norm, embedding)


def write_xglm(model: cfg.ModelConfig) -> dict[str, Any]:
    return _settings(model, XGLM_DEFAULTS, XGLM_SPELLING, scale_embedding=model.embedding.scale is not None)


def xglm_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    return by_name(model, XGLM_NAMES)


def _settings(model: cfg.ModelConfig, defaults: dict[str, Any], spelling: dict[str, str], **own: Any) -> dict[str, Any]:
    kept = {key: value for key, value in defaults.items() if key not in UNWRITTEN}
    return classic_settings(model, kept, spelling, **own)


FAMILIES = [
    Family(
        "opt",
        "OPTForCausalLM",
        OPT_DEFAULTS,
        read_opt,
        write_opt,
        opt_rows,
        aliases=OPT_SPELLING,
        fixed={"learned_embeddings": True, "scale_embeddings": False},
    ),
    Family(
        "xglm",
        "XGLMForCausalLM",
        XGLM_DEFAULTS,
        read_xglm,
        write_xglm,
        xglm_rows,
        ignored=("*.embed_positions.weights",),
        aliases=XGLM_SPELLING,
    ),
]
