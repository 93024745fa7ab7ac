"""Llama (Touvron et al. 2023, arXiv:2302.13971) and the families that differ from it in a setting or two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gpt_jax import config as cfg
from gpt_jax.conversion import ConfigError
from gpt_jax.interop.families.common import (
    DEFAULTS,
    LLAMA,
    SLIDING,
    activation,
    attention,
    decoder,
    first,
    gated,
    head_width,
    layer_types,
    rms,
    window,
    written,
    written_ropes,
)
from gpt_jax.interop.family import Family, Row, by_name
from gpt_jax.interop.rope import read_rope, rope_group
from gpt_jax.interop.settings import Settings

LLAMA_DEFAULTS = DEFAULTS | {"mlp_bias": False}
QKV: tuple[cfg.Projection, ...] = ("query", "key", "value")


def llama_rows(model: cfg.ModelConfig) -> tuple[Row, ...]:
    return by_name(model, LLAMA)


def of_llamas_make(
    model_type: str,
    architecture: str,
    defaults: Mapping[str, Any],
    read: Callable[[Settings], cfg.ModelConfig],
    write: Callable[[cfg.ModelConfig], dict[str, Any]] | None = None,
    rows: Callable[[cfg.ModelConfig], tuple[Row, ...]] = llama_rows,
    fixed: Mapping[str, Any] | None = None,
) -> Family:
    """A family whose tensors are called as Llama's are and whose settings say all that `written` writes."""

    def plainly(model: cfg.ModelConfig) -> dict[str, Any]:
        return written(model, defaults)

    return Family(model_type, architecture, defaults, read, write or plainly, rows, fixed=fixed or {})


def read_llama(s: Settings) -> cfg.ModelConfig:
    """Versions 1 to 3."""
    return decoder(s, cfg.BlockConfig(attention(s), gated(s), rms(s)), rms(s))


def read_arcee(s: Settings) -> cfg.ModelConfig:
    """An MLP without a gate."""
    mlp = cfg.Mlp(s.integer("intermediate_size"), activation(s), s.flag("mlp_bias"))
    return decoder(s, cfg.BlockConfig(attention(s), mlp, rms(s)), rms(s))


def read_mistral(s: Settings) -> cfg.ModelConfig:
    """A window in every layer (Jiang et al. 2023, arXiv:2310.06825)."""
    mask = cfg.Causal() if s["sliding_window"] is None else window(s)
    return decoder(s, cfg.BlockConfig(attention(s, mask=mask), gated(s), rms(s)), rms(s))


def read_ministral(s: Settings) -> cfg.ModelConfig:
    """A window in some layers."""
    default = "full_attention" if s["sliding_window"] is None else SLIDING
    kinds = layer_types(s, [default] * s.integer("num_hidden_layers"))
    blocks = [cfg.BlockConfig(attention(s, mask=window(s, kind)), gated(s), rms(s)) for kind in kinds]
    return decoder(s, blocks, rms(s))


BETA = "llama_4_scaling_beta"


def read_ministral3(s: Settings) -> cfg.ModelConfig:
    """Queries are sharper the further on they stand."""
    group = rope_group(s)
    position = read_rope(s, head_width(s), extra=frozenset({BETA}))
    temperature = None
    if BETA in group:
        if "original_max_position_embeddings" not in group:
            raise ConfigError(f'config.json has "{BETA}" without its "original_max_position_embeddings"')
        temperature = cfg.LogTemperature(float(group[BETA]), int(group["original_max_position_embeddings"]))
    mask = cfg.Causal() if s["sliding_window"] is None else window(s)
    mixer = attention(s, position=position, mask=mask, score=cfg.Score(temperature=temperature))
    return decoder(s, cfg.BlockConfig(mixer, gated(s), rms(s)), rms(s))


def write_ministral3(model: cfg.ModelConfig) -> dict[str, Any]:
    group, temperature = written_ropes(model), first(model).score.temperature
    if isinstance(temperature, cfg.LogTemperature):
        group |= {BETA: temperature.strength}
        group.setdefault("original_max_position_embeddings", temperature.length)
    return written(model, MINISTRAL3, rope_parameters=group)


def read_seed_oss(s: Settings) -> cfg.ModelConfig:
    """A switch of its own for the output's bias."""
    output: tuple[cfg.Projection, ...] = ("output",) if s.flag("attention_out_bias") else ()
    mixer = attention(s, bias=(QKV if s.flag("attention_bias") else ()) + output)
    return decoder(s, cfg.BlockConfig(mixer, gated(s), rms(s), dropout=s.number("residual_dropout")), rms(s))


def write_seed_oss(model: cfg.ModelConfig) -> dict[str, Any]:
    bias = first(model).bias
    own = {"attention_out_bias": "output" in bias, "residual_dropout": model.blocks[0].dropout}
    return written(model, SEED_OSS, **own)


def read_ernie4_5(s: Settings) -> cfg.ModelConfig:
    """Pairs interleaved, and one switch for all biases."""
    D = head_width(s)
    bias = s.flag("use_bias")
    mixer = attention(s, position=read_rope(s, D, interleaved=True), bias=cfg.PROJECTIONS if bias else ())
    return decoder(s, cfg.BlockConfig(mixer, replace(gated(s), bias=bias), rms(s)), rms(s))


def write_ernie4_5(model: cfg.ModelConfig) -> dict[str, Any]:
    return written(model, ERNIE4_5, use_bias=getattr(model.blocks[0].mlp, "bias", False))


def read_helium(s: Settings) -> cfg.ModelConfig:
    """Pairs interleaved, and never a bias of the output."""
    D, H, C = head_width(s), s.integer("num_attention_heads"), s.integer("hidden_size")
    if D * H != C:
        raise ConfigError(f"Helium's heads are as wide as the model together: {H} of width {D} are not {C}")
    mixer = attention(s, position=read_rope(s, D, interleaved=True), bias=QKV if s.flag("attention_bias") else ())
    return decoder(s, cfg.BlockConfig(mixer, gated(s), rms(s)), rms(s))


MISTRAL = {key: value for key, value in DEFAULTS.items() if key != "attention_bias"} | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
MINISTRAL = MISTRAL | {"layer_types": None}
MINISTRAL3 = MISTRAL | {
    "vocab_size": 131072,
    "num_hidden_layers": 34,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1_000_000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        BETA: 0.1,
    },
}
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
    of_llamas_make("llama", "LlamaForCausalLM", LLAMA_DEFAULTS, read_llama),
    of_llamas_make("mistral", "MistralForCausalLM", MISTRAL, read_mistral),
    of_llamas_make("ministral", "MinistralForCausalLM", MINISTRAL, read_ministral),
    of_llamas_make("ministral3", "Ministral3ForCausalLM", MINISTRAL3, read_ministral3, write_ministral3),
    of_llamas_make("arcee", "ArceeForCausalLM", ARCEE, read_arcee),
    of_llamas_make("seed_oss", "SeedOssForCausalLM", SEED_OSS, read_seed_oss, write_seed_oss),
    of_llamas_make("ernie4_5", "Ernie4_5ForCausalLM", ERNIE4_5, read_ernie4_5, write_ernie4_5),
    of_llamas_make("helium", "HeliumForCausalLM", HELIUM, read_helium),
]
