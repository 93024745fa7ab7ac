"""Small variants of Llama: Arcee, Seed-OSS, ERNIE 4.5, Helium."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpt_jax import config as cfg
from gpt_jax.config.errors import ConfigError
from gpt_jax.interop.families.common import (
    DEFAULTS,
    activation,
    attention,
    common_settings,
    decoder,
    first_attention,
    gated,
    head_width,
    rms,
)
from gpt_jax.interop.families.llama import LLAMA_DEFAULTS, QKV, llama_like
from gpt_jax.interop.rope import read_rope
from gpt_jax.interop.settings import Settings


def read_arcee(s: Settings) -> cfg.ModelConfig:
    """Reads Arcee, which has an MLP without a gate."""
    mlp = cfg.Mlp(s.integer("intermediate_size"), activation(s), s.flag("mlp_bias"))
    return decoder(s, cfg.BlockConfig(attention(s), mlp, rms(s)), rms(s))


def read_seed_oss(s: Settings) -> cfg.ModelConfig:
    """Reads Seed-OSS, which has a separate switch for the output's bias."""
    output: tuple[cfg.Projection, ...] = ("output",) if s.flag("attention_out_bias") else ()
    mixer = attention(s, bias=(QKV if s.flag("attention_bias") else ()) + output)
    return decoder(s, cfg.BlockConfig(mixer, gated(s), rms(s), dropout=s.number("residual_dropout")), rms(s))


def write_seed_oss(model: cfg.ModelConfig) -> dict[str, Any]:
    bias = first_attention(model).bias
    own = {"attention_out_bias": "output" in bias, "residual_dropout": model.blocks[0].dropout}
    return common_settings(model, SEED_OSS, **own)


def read_ernie4_5(s: Settings) -> cfg.ModelConfig:
    """Reads ERNIE 4.5, which has interleaved RoPE and one switch for all biases."""
    D = head_width(s)
    bias = s.flag("use_bias")
    mixer = attention(s, position=read_rope(s, D, interleaved=True), bias=cfg.PROJECTIONS if bias else ())
    return decoder(s, cfg.BlockConfig(mixer, replace(gated(s), bias=bias), rms(s)), rms(s))


def write_ernie4_5(model: cfg.ModelConfig) -> dict[str, Any]:
    return common_settings(model, ERNIE4_5, use_bias=getattr(model.blocks[0].mlp, "bias", False))


def read_helium(s: Settings) -> cfg.ModelConfig:
    """Reads Helium, which has interleaved RoPE and never a bias of the output."""
    D, H, C = head_width(s), s.integer("num_attention_heads"), s.integer("hidden_size")
    if D * H != C:
        raise ConfigError(
            f"config.json has {H} heads of width {D}, and Helium needs heads × width = {C}, the width of the model"
        )
    mixer = attention(s, position=read_rope(s, D, interleaved=True), bias=QKV if s.flag("attention_bias") else ())
    return decoder(s, cfg.BlockConfig(mixer, gated(s), rms(s)), rms(s))


ARCEE = LLAMA_DEFAULTS | {
    "hidden_size": 2560,
    "intermediate_size": 18432,
    "hidden_act": "relu2",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
SEED_OSS = LLAMA_DEFAULTS | {
    "vocab_size": 155136,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 80,
    "num_key_value_heads": 8,
    "max_position_embeddings": 524288,
    "attention_bias": True,
    "attention_out_bias": False,
    "attention_dropout": 0.1,
    "residual_dropout": 0.1,
    "head_dim": 128,
}
ERNIE4_5 = {key: value for key, value in DEFAULTS.items() if key not in ("attention_bias", "attention_dropout")} | {
    "vocab_size": 103424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
    "use_bias": False,
    "head_dim": 128,
}
HELIUM = LLAMA_DEFAULTS | {
    "vocab_size": 48000,
    "hidden_size": 2560,
    "intermediate_size": 7040,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-8,
    "rope_theta": 100_000.0,
    "head_dim": 128,
}
FAMILIES = [
    llama_like("arcee", "ArceeForCausalLM", ARCEE, read_arcee, divisible_width=True),
    llama_like("seed_oss", "SeedOssForCausalLM", SEED_OSS, read_seed_oss, write_seed_oss),
    llama_like("ernie4_5", "Ernie4_5ForCausalLM", ERNIE4_5, read_ernie4_5, write_ernie4_5),
    llama_like("helium", "HeliumForCausalLM", HELIUM, read_helium),
]
