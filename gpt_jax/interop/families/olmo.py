"""OLMo 1 to 3, and EXAONE 4, which has norms in the same places."""

from __future__ import annotations

from typing import Any

from gpt_jax import config as cfg
from gpt_jax.interop.families.common import (
    DEFAULTS,
    FULL,
    LLAMA,
    OUTPUT,
    QK,
    SLIDING,
    attention,
    common_settings,
    decoder,
    first_attention,
    gated,
    head_width,
    layer_types,
    rms,
    rope_settings,
    window,
)
from gpt_jax.interop.families.llama import llama_like
from gpt_jax.interop.family import TensorRow, by_name
from gpt_jax.interop.rope import per_kind, read_rope
from gpt_jax.interop.settings import Settings


def read_olmo(s: Settings) -> cfg.ModelConfig:
    """Reads OLMo: norms without weights; clipped queries, keys, values (Groeneveld et al. 2024, arXiv:2402.00838)."""
    norm = cfg.LayerNorm(1e-5, scale=False, bias=False)
    return decoder(s, cfg.BlockConfig(attention(s, clip=s.optional_number("clip_qkv")), gated(s), norm), norm)


def write_olmo(model: cfg.ModelConfig) -> dict[str, Any]:
    return common_settings(model, OLMO, clip_qkv=first_attention(model).clip)


def read_olmo2(s: Settings) -> cfg.ModelConfig:
    """Reads OLMo 2: norms after sublayers, and over the whole width of queries and keys (arXiv:2501.00656)."""
    mixer = attention(s, score=cfg.Score(qk_norm=rms(s), qk_norm_over="width"))
    return decoder(s, cfg.BlockConfig(mixer, gated(s), rms(s), "output"), rms(s))


def read_olmo3(s: Settings) -> cfg.ModelConfig:
    """Reads OLMo 3: OLMo 2 with windows, and a RoPE per kind of layer."""
    L, D = s.integer("num_hidden_layers"), head_width(s)
    kinds = layer_types(s, [SLIDING if (i + 1) % 4 else FULL for i in range(L)])
    # In older files, `transformers` applies theta to full attention only.
    ropes = per_kind(s, local_theta=500_000.0)
    score = cfg.Score(qk_norm=rms(s), qk_norm_over="width")

    def block(kind: str) -> cfg.BlockConfig:
        mixer = attention(s, position=read_rope(ropes, D, kind), mask=window(s, kind), score=score)
        return cfg.BlockConfig(mixer, gated(s), rms(s), "output")

    return decoder(s, [block(kind) for kind in kinds], rms(s))


def write_olmo3(model: cfg.ModelConfig) -> dict[str, Any]:
    return common_settings(model, OLMO3, rope_parameters=rope_settings(model, nested=True))


def olmo2_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    return by_name(model, LLAMA | QK | OUTPUT)


def read_exaone4(s: Settings) -> cfg.ModelConfig:
    """Reads EXAONE 4: norms after sublayers and on queries and keys; if layers have windows, only those have RoPE."""
    L, D = s.integer("num_hidden_layers"), head_width(s)
    has_windows = s["sliding_window"] is not None
    every = s["sliding_window_pattern"] if s["layer_types"] is None and has_windows else None
    if every is not None:
        every = s.integer("sliding_window_pattern")
    kinds = layer_types(s, [SLIDING if every and (i + 1) % every else FULL for i in range(L)])

    def block(kind: str) -> cfg.BlockConfig:
        position = None if has_windows and kind == FULL else read_rope(s, D)
        mixer = attention(s, position=position, mask=window(s, kind), score=cfg.Score(qk_norm=rms(s)))
        return cfg.BlockConfig(mixer, gated(s), rms(s), "output")

    return decoder(s, [block(kind) for kind in kinds], rms(s))


def write_exaone4(model: cfg.ModelConfig) -> dict[str, Any]:
    """Writes "sliding_window": null if every layer has RoPE and none a window."""
    plain = all(isinstance(x, cfg.Attention) and x.mask == cfg.Causal() and x.position for x in model.attentions)
    return common_settings(model, EXAONE4, **({"sliding_window": None} if plain else {}))


OLMO = {key: value for key, value in DEFAULTS.items() if key != "rms_norm_eps"} | {
    "vocab_size": 50304,
    "clip_qkv": None,
}
OLMO2 = DEFAULTS | {"vocab_size": 50304, "rms_norm_eps": 1e-5}
OLMO3 = OLMO2 | {"rope_theta": 500_000.0, "sliding_window": 4096, "layer_types": None}
EXAONE4 = {key: value for key, value in DEFAULTS.items() if key != "attention_bias"} | {
    "vocab_size": 102400,
    "intermediate_size": 16384,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "layer_types": None,
}

FAMILIES = [
    llama_like("olmo", "OlmoForCausalLM", OLMO, read_olmo, write_olmo),
    llama_like("olmo2", "Olmo2ForCausalLM", OLMO2, read_olmo2, rows=olmo2_rows),
    llama_like("olmo3", "Olmo3ForCausalLM", OLMO3, read_olmo3, write_olmo3, olmo2_rows),
    llama_like("exaone4", "Exaone4ForCausalLM", EXAONE4, read_exaone4, write_exaone4, olmo2_rows),
]
