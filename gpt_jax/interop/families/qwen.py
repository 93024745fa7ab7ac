"""Families with a window or RoPE chosen per layer, or with query and key norms: Qwen 2 and 3, SmolLM 3, HunYuan,
nanochat.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gpt_jax import config as cfg
from gpt_jax.config.errors import ConfigError
from gpt_jax.interop.families.common import (
    DEFAULTS,
    FULL,
    LLAMA,
    QK,
    SLIDING,
    activation,
    attention,
    common_settings,
    decoder,
    gated,
    head_width,
    layer_types,
    rms,
    window,
)
from gpt_jax.interop.families.llama import QKV, llama_like
from gpt_jax.interop.family import TensorRow, by_name, plain
from gpt_jax.interop.rope import read_rope, rope_group
from gpt_jax.interop.settings import TINY, Settings, checked_number, checked_whole
from gpt_jax.model.shapes import canonical_shapes


def qwen_kinds(s: Settings) -> list[str]:
    """Returns the kind of each layer; by default, with windows, those from layer `max_window_layers` on have one."""
    first = s.integer("max_window_layers") if s.flag("use_sliding_window") and s["sliding_window"] is not None else None
    L = s.integer("num_hidden_layers")
    kinds = layer_types(s, [FULL if first is None or i < first else SLIDING for i in range(L)])
    if SLIDING in kinds:
        s.expect("use_sliding_window", (True,), f"layers of {SLIDING} without it")
    return kinds


def read_qwen2(s: Settings) -> cfg.ModelConfig:
    """Reads Qwen 2, which has biases on queries, keys and values."""
    blocks = [cfg.BlockConfig(attention(s, bias=QKV, mask=window(s, kind)), gated(s), rms(s)) for kind in qwen_kinds(s)]
    return decoder(s, blocks, rms(s))


def read_qwen3(s: Settings) -> cfg.ModelConfig:
    """Reads Qwen 3, which has query and key norms."""
    score = cfg.Score(qk_norm=rms(s))
    blocks = [
        cfg.BlockConfig(attention(s, score=score, mask=window(s, kind)), gated(s), rms(s)) for kind in qwen_kinds(s)
    ]
    return decoder(s, blocks, rms(s))


def has_windows(model: cfg.ModelConfig) -> bool:
    return any(isinstance(getattr(mixer, "mask", None), cfg.Window) for mixer in model.attentions)


def write_qwen2(model: cfg.ModelConfig) -> dict[str, Any]:
    return common_settings(model, QWEN2, use_sliding_window=has_windows(model))


def write_qwen3(model: cfg.ModelConfig) -> dict[str, Any]:
    return common_settings(model, QWEN3, use_sliding_window=has_windows(model))


def qk_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    return by_name(model, LLAMA | QK)


def read_smollm3(s: Settings) -> cfg.ModelConfig:
    """Reads SmolLM 3, in which some layers have no RoPE; by default only those have a window."""
    L, every = s.integer("num_hidden_layers"), s.integer("no_rope_layer_interval")
    rotated = [(i + 1) % every != 0 for i in range(L)]
    if s["no_rope_layers"] is not None:
        rotated = [checked_whole("no_rope_layers", x, 0, 1) == 1 for x in s.listed("no_rope_layers")][:L]
        if len(rotated) < L:
            raise ConfigError(f'config.json has {len(rotated)} "no_rope_layers" for {L} layers')
    has_window = s.flag("use_sliding_window") and s["sliding_window"] is not None
    kinds = layer_types(s, [SLIDING if has_window and not has_rope else FULL for has_rope in rotated])
    rope = read_rope(s, head_width(s))

    def block(kind: str, has_rope: bool) -> cfg.BlockConfig:
        mixer = attention(s, position=rope if has_rope else None, mask=window(s, kind))
        return cfg.BlockConfig(mixer, gated(s), rms(s))

    return decoder(s, [block(*pair) for pair in zip(kinds, rotated, strict=True)], rms(s))


def write_smollm3(model: cfg.ModelConfig) -> dict[str, Any]:
    rotated = [int(getattr(mixer, "position", None) is not None) for mixer in model.attentions]
    return common_settings(model, SMOLLM3, no_rope_layers=rotated, use_sliding_window=has_windows(model))


def read_hunyuan(s: Settings) -> cfg.ModelConfig:
    """Reads HunYuan, which has query and key norms after RoPE, and may scale theta by a fixed `alpha`."""
    group, D = rope_group(s), head_width(s)
    unused = frozenset("alpha beta_fast beta_slow mscale mscale_all_dim".split())
    if group["rope_type"] == "dynamic" and "alpha" in group and group["alpha"]:
        theta, alpha = (checked_number(key, group[key], TINY) for key in ("rope_theta", "alpha"))
        theta = checked_number("alpha", theta * alpha ** (D / max(D - 2, 1)), TINY)
        rope = replace(read_rope(s, D, extra=unused, theta=theta), scaling=None)
    else:
        rope = read_rope(s, D, extra=unused)
    mixer = attention(s, position=rope, score=cfg.Score(qk_norm=rms(s), qk_norm_last=True))
    return decoder(s, cfg.BlockConfig(mixer, gated(s), rms(s)), rms(s))


def hunyuan_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    norms = {
        "blocks/{}/attention/query_norm": "model.layers.{}.self_attn.query_layernorm",
        "blocks/{}/attention/key_norm": "model.layers.{}.self_attn.key_layernorm",
    }
    return by_name(model, LLAMA | norms)


def read_nanochat(s: Settings) -> cfg.ModelConfig:
    """Reads nanochat: norms without weights, also on embeddings and, after RoPE, on queries and keys; no MLP gate."""
    norm = rms(s, scale=False)
    mixer = attention(s, score=cfg.Score(qk_norm=norm, qk_norm_last=True))
    block = cfg.BlockConfig(mixer, cfg.Mlp(s.integer("intermediate_size"), activation(s)), norm)
    softcap = s.optional_number("final_logit_softcapping")
    return decoder(s, block, norm, cfg.Embedding(norm=norm), softcap=softcap)


def write_nanochat(model: cfg.ModelConfig) -> dict[str, Any]:
    return common_settings(model, NANOCHAT, final_logit_softcapping=model.head.softcap)


def nanochat_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    """nanochat rotates in the opposite direction, which equals negating the second half of each query and key head."""
    mixer = model.attentions[0]
    assert isinstance(mixer, cfg.Attention)
    D = mixer.resolved_head_width(model.width)
    sign = np.where(np.arange(D) < D // 2, 1, -1)
    shapes, special = canonical_shapes(plain(model)), []

    def negated(y: np.ndarray) -> np.ndarray:
        """Negates the second half of each head; y (…, heads · D)."""
        return (y.reshape(*y.shape[:-1], -1, D) * sign.astype(y.dtype)).reshape(y.shape)

    for i in range(model.layers):
        for ours, theirs in (("query", "q_proj"), ("key", "k_proj")):
            at, name = f"blocks/{i}/attention/{ours}", f"model.layers.{i}.self_attn.{theirs}"
            for leaf, tensor in (("kernel", "weight"), ("bias", "bias")):
                if f"{at}/{leaf}" in shapes:
                    row = TensorRow(
                        f"{name}.{tensor}", (f"{at}/{leaf}",), lambda x: (negated(x.T),), lambda y: negated(y).T
                    )
                    special.append(row)
    names = {"blocks/{}/mlp/up": "model.layers.{}.mlp.fc1", "blocks/{}/mlp/down": "model.layers.{}.mlp.fc2"}
    return by_name(model, LLAMA | names, special)


QWEN2 = {key: value for key, value in DEFAULTS.items() if key != "attention_bias"} | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
QWEN3 = QWEN2 | {"head_dim": 128, "attention_bias": False}
SMOLLM3 = DEFAULTS | {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 2_000_000.0,
    "tie_word_embeddings": True,
    "mlp_bias": False,
    "use_sliding_window": False,
    "sliding_window": None,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "layer_types": None,
    "max_window_layers": None,  # in published files, but never read
}
HUNYUAN = DEFAULTS | {"vocab_size": 290943, "rms_norm_eps": 1e-5}
HUNYUAN_FIXED = {"use_qk_norm": True, "use_cla": False, "mlp_bias": False, "use_rotary_pos_emb": True}
HUNYUAN_INERT = (
    "cla_share_factor norm_type org_vocab_size pad_id im_start_id im_end_id im_newline_id text_start_id text_end_id"
    " mask_init_id dense_list pool_type class_num add_classification_head xdrope_section"
)
NANOCHAT = DEFAULTS | {
    "vocab_size": 50304,
    "hidden_size": 768,
    "intermediate_size": 8192,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "hidden_act": "relu2",
    "final_logit_softcapping": 15.0,
}

FAMILIES = [
    llama_like("qwen2", "Qwen2ForCausalLM", QWEN2, read_qwen2, write_qwen2),
    llama_like("qwen3", "Qwen3ForCausalLM", QWEN3, read_qwen3, write_qwen3, qk_rows),
    llama_like("smollm3", "SmolLM3ForCausalLM", SMOLLM3, read_smollm3, write_smollm3),
    llama_like(
        "hunyuan_v1_dense",
        "HunYuanDenseV1ForCausalLM",
        HUNYUAN,
        read_hunyuan,
        rows=hunyuan_rows,
        fixed=HUNYUAN_FIXED,
        aliases={"attention_head_dim": "head_dim"},
        inert=tuple(HUNYUAN_INERT.split()),
    ),
    llama_like("nanochat", "NanoChatForCausalLM", NANOCHAT, read_nanochat, write_nanochat, nanochat_rows),
]
