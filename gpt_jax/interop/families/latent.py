"""Models with DeepSeek's latent attention and without experts: Youtu, MiniCPM 3."""

from __future__ import annotations

import math
from typing import Any

from gpt_jax import config as cfg
from gpt_jax.config.errors import ConfigError
from gpt_jax.interop.families.common import (
    ACTIVATION_NAMES,
    DEFAULTS,
    LLAMA,
    decoder,
    gated,
    require_type,
    rms,
    rope_settings,
    shortest_decimal,
)
from gpt_jax.interop.families.llama import llama_like
from gpt_jax.interop.family import TensorRow, by_name, joined, plain
from gpt_jax.interop.rope import read_rope, rope_group
from gpt_jax.interop.settings import TINY, Settings, checked_number
from gpt_jax.model.shapes import canonical_shapes


def latent(s: Settings, value_width: int, interleaved: bool) -> cfg.Latent:
    """Returns latent attention. The norms of its latents have a fixed eps; YaRN with `mscale_all_dim` scales the
    scores.
    """
    D, P = s.integer("qk_nope_head_dim"), s.integer("qk_rope_head_dim")
    scale, group = None, rope_group(s)
    if group["rope_type"] != "default" and "mscale_all_dim" in group and group["mscale_all_dim"]:
        if "factor" not in group:
            raise ConfigError('config.json has RoPE with "mscale_all_dim" without its "factor"')
        factor = checked_number("factor", group["factor"], TINY)
        strength = 0.1 * checked_number("mscale_all_dim", group["mscale_all_dim"])
        more = strength * math.log(factor) + 1 if factor > 1 else 1.0
        scale = (D + P) ** -0.5 * more * more
    return cfg.Latent(
        s.integer("num_attention_heads"),
        s.integer("kv_lora_rank"),
        D,
        P,
        s.optional_integer("q_lora_rank"),
        value_width,
        position=read_rope(s, P, interleaved=interleaved, extra=frozenset({"mscale_all_dim"})),
        score=cfg.Score(scale),
        norm=cfg.RmsNorm(1e-6),
        bias=s.flag("attention_bias"),
        dropout=s.number("attention_dropout"),
    )


def read_youtu(s: Settings) -> cfg.ModelConfig:
    mixer = latent(s, s.integer("v_head_dim"), s.flag("rope_interleave"))
    return decoder(s, cfg.BlockConfig(mixer, gated(s), rms(s)), rms(s))


def read_minicpm3(s: Settings) -> cfg.ModelConfig:
    """Reads MiniCPM 3, which scales embedding, residual stream and logits (Hu et al. 2024, arXiv:2404.06395)."""
    C, L, base = s.integer("hidden_size"), s.integer("num_hidden_layers"), s.optional_number("dim_model_base")
    value_width = s.optional_integer("v_head_dim") or C // s.integer("num_attention_heads")
    depth = s.optional_number("scale_depth")
    residual_scale = 1.0 if depth is None else depth / math.sqrt(L)
    block = cfg.BlockConfig(latent(s, value_width, False), gated(s), rms(s), residual_scale=residual_scale)
    embedding = cfg.Embedding(scale=s.number("scale_emb"))
    return decoder(s, block, rms(s), embedding, scale=1.0 if base is None else base / C)


def latent_settings(model: cfg.ModelConfig, defaults: dict[str, Any], **own: Any) -> dict[str, Any]:
    mixer, mlp = require_type(model.attentions[0], cfg.Latent), require_type(model.blocks[0].mlp, cfg.GatedMlp)
    norm, rope = require_type(model.final_norm, cfg.RmsNorm), require_type(mixer.position, cfg.Rope)
    values = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": mlp.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.heads,
        "kv_lora_rank": mixer.rank,
        "q_lora_rank": mixer.query_rank,
        "qk_nope_head_dim": mixer.head_width,
        "qk_rope_head_dim": mixer.rotary_width,
        "v_head_dim": mixer.resolved_value_width,
        "hidden_act": ACTIVATION_NAMES[mlp.activation],
        "mlp_bias": mlp.bias,
        "max_position_embeddings": model.context_length,
        "rms_norm_eps": norm.eps,
        "tie_word_embeddings": model.head.tied,
        "attention_bias": mixer.bias,
        "attention_dropout": mixer.dropout,
        "rope_interleave": rope.interleaved,
        "rope_parameters": rope_settings(model),
    } | own
    return {key: value for key, value in values.items() if key in defaults}


def write_youtu(model: cfg.ModelConfig) -> dict[str, Any]:
    return latent_settings(model, YOUTU)


def write_minicpm3(model: cfg.ModelConfig) -> dict[str, Any]:
    block, head = model.blocks[0], model.head.scale
    residual, scale = (1.0 if x is None else x for x in (block.residual_scale, model.embedding.scale))
    root = math.sqrt(model.layers)
    depth = shortest_decimal(residual * root, lambda x: x / root, residual)
    own = {"scale_emb": scale, "scale_depth": depth}
    base = model.width if head is None else round(head * model.width)
    return latent_settings(model, MINICPM3, dim_model_base=base, **own)


def latent_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    """One tensor makes the latent and the rotary key, another the keys and values of each head in turn."""
    mixer = require_type(model.attentions[0], cfg.Latent)
    at = "model.layers.{}.self_attn"
    names = {
        "blocks/{}/attention/query_latent": f"{at}.q_a_proj",
        "blocks/{}/attention/query_latent_norm": f"{at}.q_a_layernorm",
        "blocks/{}/attention/query": f"{at}.q_proj" if mixer.query_rank is None else f"{at}.q_b_proj",
        "blocks/{}/attention/latent_norm": f"{at}.kv_a_layernorm",
    }
    shapes, special, H = canonical_shapes(plain(model)), [], mixer.heads
    widths = (mixer.rank, mixer.rotary_width)
    for i in range(model.layers):
        ours, theirs = f"blocks/{i}/attention", at.format(i)
        for leaf, tensor in (("kernel", "weight"), ("bias", "bias")):
            if f"{ours}/latent/{leaf}" in shapes:
                paths = (f"{ours}/latent/{leaf}", f"{ours}/rotary_key/{leaf}")
                special.append(joined(f"{theirs}.kv_a_proj_with_mqa.{tensor}", paths, widths))
        paths = (f"{ours}/key/kernel", f"{ours}/value/kernel")
        each = (H * mixer.head_width, H * mixer.resolved_value_width)
        special.append(joined(f"{theirs}.kv_b_proj.weight", paths, each, groups=H))
    return by_name(model, LLAMA | names, special)


YOUTU = {key: value for key, value in DEFAULTS.items() if key != "head_dim"} | {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "rope_interleave": True,
    # derived from other keys, and written as well
    "head_dim": None,
    "qk_head_dim": None,
    "embedding_initializer_range": None,
}
MINICPM3 = {key: value for key, value in YOUTU.items() if key not in ("rope_interleave", "embedding_initializer_range")}
MINICPM3 |= {
    "vocab_size": 73448,
    "hidden_size": 2560,
    "intermediate_size": 6400,
    "num_hidden_layers": 62,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "rms_norm_eps": 1e-5,
    "kv_lora_rank": 256,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": None,
    "max_position_embeddings": 32768,
    "mlp_bias": False,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 256,
}

FAMILIES = [
    llama_like("youtu", "YoutuForCausalLM", YOUTU, read_youtu, write_youtu, latent_rows, {"mlp_bias": False}),
    llama_like(
        "minicpm3", "MiniCPM3ForCausalLM", MINICPM3, read_minicpm3, write_minicpm3, latent_rows, divisible_width=True
    ),
]
