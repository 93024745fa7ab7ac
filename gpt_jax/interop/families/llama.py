"""Llama (Touvron et al. 2023, arXiv:2302.13971), Mistral and Ministral."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gpt_jax import config as cfg
from gpt_jax.config.errors import ConfigError
from gpt_jax.interop.families.common import (
    DEFAULTS,
    LLAMA,
    SLIDING,
    attention,
    common_settings,
    decoder,
    first_attention,
    gated,
    head_width,
    layer_types,
    require_divisible_width,
    rms,
    rope_settings,
    window,
)
from gpt_jax.interop.family import Family, TensorRow, by_name
from gpt_jax.interop.rope import read_rope, rope_group
from gpt_jax.interop.settings import Settings, checked_number, checked_whole

LLAMA_DEFAULTS = DEFAULTS | {"mlp_bias": False}
QKV: tuple[cfg.Projection, ...] = ("query", "key", "value")


def llama_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    return by_name(model, LLAMA)


def llama_like(
    model_type: str,
    architecture: str,
    defaults: Mapping[str, Any],
    read: Callable[[Settings], cfg.ModelConfig],
    write: Callable[[cfg.ModelConfig], dict[str, Any]] | None = None,
    rows: Callable[[cfg.ModelConfig], tuple[TensorRow, ...]] = llama_rows,
    fixed: Mapping[str, Any] | None = None,
    aliases: Mapping[str, str] | None = None,
    inert: tuple[str, ...] = (),
    divisible_width: bool = False,
) -> Family:
    """Returns a family with the prefix of Llama's tensors and, by default, its table and `common_settings`.

    Args:
      model_type, architecture, defaults, read, write, rows, fixed, aliases, inert: see `Family`.
      divisible_width: whether `transformers` requires C to be a multiple of H.
    """

    def checked(model: cfg.ModelConfig) -> dict[str, Any]:
        if divisible_width:
            require_divisible_width(model)
        return common_settings(model, defaults) if write is None else write(model)

    return Family(
        model_type,
        architecture,
        defaults,
        read,
        checked,
        rows,
        aliases=aliases or {},
        fixed=fixed or {},
        inert=inert,
    )


def read_llama(s: Settings) -> cfg.ModelConfig:
    """Reads Llama 1 to 3."""
    return decoder(s, cfg.BlockConfig(attention(s), gated(s), rms(s)), rms(s))


def read_mistral(s: Settings) -> cfg.ModelConfig:
    """Reads Mistral, which may have a window in every layer (Jiang et al. 2023, arXiv:2310.06825)."""
    mask = cfg.Causal() if s["sliding_window"] is None else window(s)
    return decoder(s, cfg.BlockConfig(attention(s, mask=mask), gated(s), rms(s)), rms(s))


def read_ministral(s: Settings) -> cfg.ModelConfig:
    """Reads Ministral, which may have a window in some layers."""
    default = "full_attention" if s["sliding_window"] is None else SLIDING
    kinds = layer_types(s, [default] * s.integer("num_hidden_layers"))
    blocks = [cfg.BlockConfig(attention(s, mask=window(s, kind)), gated(s), rms(s)) for kind in kinds]
    return decoder(s, blocks, rms(s))


BETA = "llama_4_scaling_beta"


def read_ministral3(s: Settings) -> cfg.ModelConfig:
    """Reads Ministral 3, which scales queries by a factor that grows with the logarithm of their position."""
    group = rope_group(s)
    position = read_rope(s, head_width(s), extra=frozenset({BETA}))
    temperature = None
    if BETA in group:
        if "original_max_position_embeddings" not in group:
            raise ConfigError(f'config.json has "{BETA}" without its "original_max_position_embeddings"')
        length = checked_whole("original_max_position_embeddings", group["original_max_position_embeddings"], 1)
        temperature = cfg.LogTemperature(checked_number(BETA, group[BETA]), length)
    mask = cfg.Causal() if s["sliding_window"] is None else window(s)
    mixer = attention(s, position=position, mask=mask, score=cfg.Score(temperature=temperature))
    return decoder(s, cfg.BlockConfig(mixer, gated(s), rms(s)), rms(s))


def write_ministral3(model: cfg.ModelConfig) -> dict[str, Any]:
    group, temperature = rope_settings(model), first_attention(model).score.temperature
    if isinstance(temperature, cfg.LogTemperature):
        group |= {BETA: temperature.strength}
        group.setdefault("original_max_position_embeddings", temperature.length)
    return common_settings(model, MINISTRAL3, rope_parameters=group)


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
FAMILIES = [
    llama_like("llama", "LlamaForCausalLM", LLAMA_DEFAULTS, read_llama, divisible_width=True),
    llama_like("mistral", "MistralForCausalLM", MISTRAL, read_mistral),
    llama_like("ministral", "MinistralForCausalLM", MINISTRAL, read_ministral),
    llama_like("ministral3", "Ministral3ForCausalLM", MINISTRAL3, read_ministral3, write_ministral3),
]
