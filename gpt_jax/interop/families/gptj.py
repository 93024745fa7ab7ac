"""GPT-J and CodeGen: parallel attention and MLP after one norm, and interleaved RoPE on a part of each head."""

from __future__ import annotations

from typing import Any

from gpt_jax import config as cfg
from gpt_jax.config.errors import ConfigError
from gpt_jax.interop.families.classic import classic_settings, layer_norm, mlp
from gpt_jax.interop.families.common import decoder, head_width, require_type
from gpt_jax.interop.families.gpt2 import MASKS, SPELLING, UNUSED
from gpt_jax.interop.family import Family, TensorRow, by_name, fused
from gpt_jax.interop.rope import rope_fraction
from gpt_jax.interop.settings import Settings

NAMES = {
    "embedding": "transformer.wte",
    "blocks/{}/norm": "transformer.h.{}.ln_1",
    "blocks/{}/attention/query": "transformer.h.{}.attn.q_proj",
    "blocks/{}/attention/key": "transformer.h.{}.attn.k_proj",
    "blocks/{}/attention/value": "transformer.h.{}.attn.v_proj",
    "blocks/{}/attention/output": "transformer.h.{}.attn.out_proj",
    "blocks/{}/mlp/up": "transformer.h.{}.mlp.fc_in",
    "blocks/{}/mlp/down": "transformer.h.{}.mlp.fc_out",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
}
DEFAULTS: dict[str, Any] = UNUSED | {
    "vocab_size": 50400,
    "hidden_size": 4096,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "max_position_embeddings": 2048,
    "intermediate_size": None,
    "rotary_dim": 64,
    "rotary": True,  # of older files
    "scale_attn_weights": True,  # of older files
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "tie_word_embeddings": False,
}
PARTS = 4  # CodeGen was trained on a mesh of 4, which its fused tensor reflects


def read(s: Settings) -> cfg.ModelConfig:
    s.expect("rotary", (True, None), "GPT-J without rotation")
    s.expect("scale_attn_weights", (True, None), "GPT-J with unscaled scores")
    D, rotated = head_width(s), s.integer("rotary_dim")
    if rotated % 2 or not 0 < rotated <= D:
        raise ConfigError(f'config.json has "rotary_dim": {rotated}, which must be even and at most the head width {D}')
    norm = layer_norm(s)
    attention = cfg.Attention(
        s.integer("num_attention_heads"),
        position=cfg.Rope(fraction=rope_fraction(rotated, D), interleaved=True),
        dropout=s.number("attn_pdrop"),
    )
    block = cfg.BlockConfig(attention, mlp(s), norm, "parallel", dropout=s.number("resid_pdrop"))
    return decoder(s, block, norm, cfg.Embedding(dropout=s.number("embd_pdrop")), bias=True)


def read_codegen(s: Settings) -> cfg.ModelConfig:
    if s.integer("num_attention_heads") % PARTS:
        raise ConfigError(
            f'config.json has "n_head": {s["num_attention_heads"]}, and CodeGen needs a multiple of {PARTS}'
        )
    return read(s)


def write(model: cfg.ModelConfig) -> dict[str, Any]:
    attention = require_type(model.blocks[0].attention, cfg.Attention)
    rotated = cfg.rope_width(require_type(attention.position, cfg.Rope), attention.resolved_head_width(model.width))
    values = classic_settings(model, DEFAULTS, SPELLING, rotary_dim=rotated)
    return {key: value for key, value in values.items() if key not in ("rotary", "scale_attn_weights")}


def rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    return by_name(model, NAMES)


def codegen_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    """One tensor holds the queries, values and keys of each quarter of the heads in turn."""
    order = ("attention/query", "attention/value", "attention/key")
    return by_name(
        model, NAMES, fused(model, "transformer.h.{}.attn.qkv_proj", order, (model.width,) * 3, groups=PARTS)
    )


IGNORED = (*MASKS, "*.attn.causal_mask", "*.attn.embed_positions")
FAMILIES = [
    Family("gptj", "GPTJForCausalLM", DEFAULTS, read, write, rows, "transformer.", IGNORED, aliases=SPELLING),
    Family(
        "codegen",
        "CodeGenForCausalLM",
        DEFAULTS,
        read_codegen,
        write,
        codegen_rows,
        "transformer.",
        IGNORED,
        aliases=SPELLING,
    ),
]
