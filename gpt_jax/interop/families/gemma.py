"""Gemma 1 to 3 (arXiv:2403.08295, 2408.00118, 2503.19786) and VaultGemma: norm scales stored minus 1 and embeddings
scaled by √C; from Gemma 2 on windows, soft-caps, and norms before and after each sublayer.
"""

from __future__ import annotations

import math
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

BEFORE_MLP = {"blocks/{}/mlp_norm": "model.layers.{}.pre_feedforward_layernorm"}


def embedding(s: Settings) -> cfg.Embedding:
    return cfg.Embedding(scale=math.sqrt(s.integer("hidden_size")))


def read_gemma(s: Settings) -> cfg.ModelConfig:
    """Reads Gemma 1, whose files say "gelu" but mean its tanh approximation."""
    s.expect("use_bidirectional_attention", (None, False), "attention to later positions")
    if s["hidden_act"] == "gelu":
        s = s.replaced(hidden_act="gelu_pytorch_tanh")
    norm = rms(s, unit_offset=True)
    return decoder(s, cfg.BlockConfig(attention(s), gated(s), norm), norm, embedding(s))


def read_gemma2(s: Settings) -> cfg.ModelConfig:
    s.expect("use_bidirectional_attention", (None, False), "attention to later positions")
    return _with_windows(s, s, every=2, residual="sandwich")


def read_gemma3(s: Settings) -> cfg.ModelConfig:
    """Reads Gemma 3, with a RoPE theta per kind of layer, and query and key norms."""
    s.expect("use_bidirectional_attention", (None, False), "attention to later positions")
    theta = s.number("rope_local_base_freq")
    qk_norm = rms(s, unit_offset=True)
    every = s.integer("sliding_window_pattern")
    return _with_windows(s, per_kind(s, local_theta=theta), every=every, residual="sandwich", qk_norm=qk_norm)


def read_vaultgemma(s: Settings) -> cfg.ModelConfig:
    return _with_windows(s, s, every=2, residual="pre")


def _with_windows(
    s: Settings, ropes: Settings, every: int, residual: Any, qk_norm: cfg.NormConfig | None = None
) -> cfg.ModelConfig:
    """Reads a model with a window in all layers except every `every`-th."""
    L, D, norm = s.integer("num_hidden_layers"), head_width(s), rms(s, unit_offset=True)
    kinds = layer_types(s, [SLIDING if (i + 1) % every else FULL for i in range(L)])
    softcap = s.optional_number("attn_logit_softcapping") if qk_norm is None else None
    score = cfg.Score(s.number("query_pre_attn_scalar") ** -0.5, qk_norm, softcap=softcap)

    def block(kind: str) -> cfg.BlockConfig:
        mixer = attention(s, position=read_rope(ropes, D, kind), mask=window(s, kind), score=score)
        return cfg.BlockConfig(mixer, gated(s, "hidden_activation"), norm, residual)

    final = s.optional_number("final_logit_softcapping")
    return decoder(s, [block(kind) for kind in kinds], norm, embedding(s), softcap=final)


def write_with_windows(model: cfg.ModelConfig, defaults: dict[str, Any], **own: Any) -> dict[str, Any]:
    mixer, score = first_attention(model), first_attention(model).score
    scalar = mixer.resolved_head_width(model.width) if score.scale is None else round(score.scale**-2)
    softcaps = {"attn_logit_softcapping": score.softcap, "final_logit_softcapping": model.head.softcap}
    return common_settings(model, defaults, query_pre_attn_scalar=scalar, **softcaps, **own)


def write_gemma2(model: cfg.ModelConfig) -> dict[str, Any]:
    return write_with_windows(model, GEMMA2)


def write_gemma3(model: cfg.ModelConfig) -> dict[str, Any]:
    return write_with_windows(model, GEMMA3, rope_parameters=rope_settings(model, nested=True))


def gemma2_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    return by_name(model, LLAMA | QK | OUTPUT | BEFORE_MLP)


GEMMA = DEFAULTS | {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": None,
    "hidden_activation": None,  # in published files, in addition to hidden_act; not read
}
GEMMA2 = GEMMA | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_act": None,  # in published files, in addition to hidden_activation; not read
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
GEMMA3 = GEMMA2 | {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "sliding_window_pattern": 6,
    "_sliding_window_pattern": None,  # some versions write it as well
}
VAULTGEMMA = {key: value for key, value in GEMMA2.items() if key != "use_bidirectional_attention"}


def write_vaultgemma(model: cfg.ModelConfig) -> dict[str, Any]:
    return write_with_windows(model, VAULTGEMMA)


def vaultgemma_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    return by_name(model, LLAMA | BEFORE_MLP)


FAMILIES = [
    llama_like("gemma", "GemmaForCausalLM", GEMMA, read_gemma),
    llama_like(
        "gemma2",
        "Gemma2ForCausalLM",
        GEMMA2,
        read_gemma2,
        write_gemma2,
        gemma2_rows,
        aliases={"sliding_window_size": "sliding_window"},
        divisible_width=True,
    ),
    llama_like(
        "gemma3_text", "Gemma3ForCausalLM", GEMMA3, read_gemma3, write_gemma3, gemma2_rows, divisible_width=True
    ),
    llama_like(
        "vaultgemma",
        "VaultGemmaForCausalLM",
        VAULTGEMMA,
        read_vaultgemma,
        write_vaultgemma,
        vaultgemma_rows,
        divisible_width=True,
    ),
]
