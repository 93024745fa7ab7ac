"""BLOOM (arXiv:2211.05100) and MPT: position enters only through ALiBi's penalties."""

from __future__ import annotations

from typing import Any

from gpt_jax import config as cfg
from gpt_jax.interop.families.classic import QKV, classic_settings, layer_norm
from gpt_jax.interop.families.common import decoder, require_type
from gpt_jax.interop.family import Family, TensorRow, by_name, fused
from gpt_jax.interop.settings import Settings

BLOOM_NAMES = {
    "embedding": "transformer.word_embeddings",
    "embedding/norm": "transformer.word_embeddings_layernorm",
    "blocks/{}/attention_norm": "transformer.h.{}.input_layernorm",
    "blocks/{}/attention/output": "transformer.h.{}.self_attention.dense",
    "blocks/{}/mlp_norm": "transformer.h.{}.post_attention_layernorm",
    "blocks/{}/mlp/up": "transformer.h.{}.mlp.dense_h_to_4h",
    "blocks/{}/mlp/down": "transformer.h.{}.mlp.dense_4h_to_h",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
}
MPT_NAMES = {
    "embedding": "transformer.wte",
    "blocks/{}/attention_norm": "transformer.blocks.{}.norm_1",
    "blocks/{}/attention/output": "transformer.blocks.{}.attn.out_proj",
    "blocks/{}/mlp_norm": "transformer.blocks.{}.norm_2",
    "blocks/{}/mlp/up": "transformer.blocks.{}.ffn.up_proj",
    "blocks/{}/mlp/down": "transformer.blocks.{}.ffn.down_proj",
    "final_norm": "transformer.norm_f",
    "head": "lm_head",
}
BLOOM_SPELLING = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "seq_length": "max_position_embeddings",  # the length of training rows, not a limit
}
MPT_SPELLING = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "max_seq_len": "max_position_embeddings",
}
# Keys of older files that choose how products are computed and rounded.
BLOOM_UNUSED = dict.fromkeys(
    (
        "n_inner",
        "offset_alibi",
        "attention_softmax_in_fp32",
        "bias_dropout_fusion",
        "masked_softmax_fusion",
        "skip_bias_add",
        "skip_bias_add_qkv",
    )
)
BLOOM_DEFAULTS: dict[str, Any] = BLOOM_UNUSED | {
    "vocab_size": 250880,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
    "intermediate_size": None,
    "layer_norm_epsilon": 1e-5,
    "apply_residual_connection_post_layernorm": False,
    "pretraining_tp": 1,
    "slow_but_exact": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
}
MPT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50368,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 2048,
    "intermediate_size": None,
    "layer_norm_epsilon": 1e-5,
    "attn_config": None,
    "logit_scale": None,
    "norm_type": "low_precision_layernorm",
    "tie_word_embeddings": True,
    # `transformers` ignores these: MLPs are always four times as wide, nothing has a bias, ALiBi replaces learned
    # positions, and only `attn_pdrop` is applied. A model that differs has other tensors, which are refused.
    "expansion_ratio": 4,
    "no_bias": True,
    "learned_pos_emb": True,
    "resid_pdrop": 0.0,
    "emb_pdrop": 0.0,
    "embedding_fraction": 1.0,
    "init_device": "cpu",
    "init_config": None,
    "tokenizer_name": None,
    "verbose": None,
}
ATTENTION: dict[str, Any] = {
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_type": "multihead_attention",
    "clip_qkv": None,
    "softmax_scale": None,
    "qk_ln": False,
    "prefix_lm": False,
    "attn_pdrop": 0.0,
    "attn_impl": "torch",
    "attn_uses_sequence_id": False,
}


def read_bloom(s: Settings) -> cfg.ModelConfig:
    s.expect("apply_residual_connection_post_layernorm", (False, None), "residual stream that starts after a norm")
    if s["pretraining_tp"] not in (1, None):
        s.expect("slow_but_exact", (False, None), "products in slices, which leave out biases")
    norm = layer_norm(s)
    attention = cfg.Attention(
        s.integer("num_attention_heads"),
        position=cfg.Alibi(),
        bias=cfg.PROJECTIONS,
        dropout=s.number("attention_dropout"),
    )
    hidden = cfg.Mlp(4 * s.integer("hidden_size"), "gelu_tanh", bias=True)
    block = cfg.BlockConfig(attention, hidden, norm, dropout=s.number("hidden_dropout"))
    return decoder(s, block, norm, cfg.Embedding(norm=norm))


def write_bloom(model: cfg.ModelConfig) -> dict[str, Any]:
    unwritten = {*BLOOM_UNUSED, "intermediate_size", "pretraining_tp", "slow_but_exact"}
    return classic_settings(model, {key: None for key in BLOOM_DEFAULTS if key not in unwritten}, BLOOM_SPELLING)


def bloom_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    """Query, key and value of each head in turn form one tensor."""
    heads = require_type(model.blocks[0].attention, cfg.Attention).heads
    name, widths = "transformer.h.{}.self_attention.query_key_value", (model.width,) * 3
    return by_name(model, BLOOM_NAMES, fused(model, name, QKV, widths, groups=heads))


def read_mpt(s: Settings) -> cfg.ModelConfig:
    """Reads MPT as `transformers` computes it, which supports fewer settings than MosaicML's own code."""
    s.expect("logit_scale", (None,), "scale of logits in MPT, as transformers has none")
    s.expect("norm_type", ("low_precision_layernorm", "layernorm", "layer_norm"), "such norm in MPT")
    a = _attention_settings(s)
    a.expect("alibi", (True,), "MPT without ALiBi, as transformers has none")
    a.expect("alibi_bias_max", (8,), "MPT with other slopes, as transformers has none")
    a.expect("attn_type", ("multihead_attention",), "MPT with fewer key heads, as transformers has none")
    a.expect("qk_ln", (False, None), "MPT with norms of queries and keys, as transformers has none")
    a.expect("prefix_lm", (False, None), "MPT with a prefix, as transformers has none")
    dropout, clip = a.number("attn_pdrop"), a.optional_number("clip_qkv")
    norm = layer_norm(s, bias=False)
    attention = cfg.Attention(
        s.integer("num_attention_heads"),
        position=cfg.Alibi(),
        score=cfg.Score(scale=a.optional_number("softmax_scale")),
        clip=clip or None,
        dropout=dropout,
    )
    block = cfg.BlockConfig(attention, cfg.Mlp(4 * s.integer("hidden_size"), "gelu"), norm, dropout=dropout)
    return decoder(s, block, norm)


def _attention_settings(s: Settings) -> Settings:
    group = Settings(s.group("attn_config"), ATTENTION, "mpt")
    group.refuse_unknown()
    return group


def write_mpt(model: cfg.ModelConfig) -> dict[str, Any]:
    attention = require_type(model.blocks[0].attention, cfg.Attention)
    group = {"alibi": True, "alibi_bias_max": 8, "clip_qkv": attention.clip, "softmax_scale": attention.score.scale}
    kept = ("vocab_size", *MPT_SPELLING.values(), "layer_norm_epsilon", "attn_config", "tie_word_embeddings")
    return classic_settings(model, dict.fromkeys(kept), MPT_SPELLING, attn_config=group)


def mpt_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    """All queries, then all keys, then all values form one tensor."""
    widths = (model.width,) * 3
    return by_name(model, MPT_NAMES, fused(model, "transformer.blocks.{}.attn.Wqkv", QKV, widths))


FAMILIES = [
    Family(
        "bloom",
        "BloomForCausalLM",
        BLOOM_DEFAULTS,
        read_bloom,
        write_bloom,
        bloom_rows,
        prefix="transformer.",
        aliases=BLOOM_SPELLING | {"n_embed": "hidden_size"},
    ),
    Family(
        "mpt",
        "MptForCausalLM",
        MPT_DEFAULTS,
        read_mpt,
        write_mpt,
        mpt_rows,
        prefix="transformer.",
        aliases=MPT_SPELLING,
    ),
]
