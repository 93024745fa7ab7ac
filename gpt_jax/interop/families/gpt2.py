"""GPT-2 (Radford et al. 2019), and two families that differ from it only in attention: GPT-BigCode (StarCoder), whose
query heads may share one key head, and GPT-Neo, with windows in some layers and unscaled scores.
"""

from __future__ import annotations

from typing import Any

from gpt_jax import config as cfg
from gpt_jax.config.errors import ConfigError
from gpt_jax.config.foreign import shown
from gpt_jax.interop.families.classic import QKV, classic_settings, layer_norm, mlp
from gpt_jax.interop.families.common import decoder, head_width, require_type
from gpt_jax.interop.family import Family, TensorRow, by_name, fused
from gpt_jax.interop.settings import Settings, checked_whole

NAMES = {
    "embedding": "transformer.wte",
    "embedding/position": "transformer.wpe",
    "blocks/{}/attention_norm": "transformer.h.{}.ln_1",
    "blocks/{}/attention/output": "transformer.h.{}.attn.c_proj",
    "blocks/{}/mlp_norm": "transformer.h.{}.ln_2",
    "blocks/{}/mlp/up": "transformer.h.{}.mlp.c_fc",
    "blocks/{}/mlp/down": "transformer.h.{}.mlp.c_proj",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
}
NEO_NAMES = NAMES | {
    f"blocks/{{}}/attention/{ours}": f"transformer.h.{{}}.attn.attention.{theirs}_proj"
    for ours, theirs in {"query": "q", "key": "k", "value": "v", "output": "out"}.items()
}
# The family's spelling → the usual one.
SPELLING = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
}
NEO_SPELLING = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
# Keys of other heads, and of the original TensorFlow code.
UNUSED: dict[str, Any] = {
    "n_ctx": None,
    "n_special": 0,
    "predict_special_tokens": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "summary_activation": None,
    "summary_proj_to_labels": True,
    "summary_first_dropout": 0.1,
}
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 1024,
    "intermediate_size": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "tie_word_embeddings": True,
}
GPT2_DEFAULTS = DEFAULTS | UNUSED | {"scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False}
BIGCODE_DEFAULTS = (
    DEFAULTS
    | UNUSED
    | {
        "activation_function": "gelu_pytorch_tanh",
        "multi_query": True,
        # These choose kernels and types.
        "num_key_value_heads": None,
        "attention_softmax_in_fp32": True,
        "scale_attention_softmax_in_fp32": True,
        "inference_runner": None,
        "max_batch_size": None,
        "max_sequence_length": None,
        "pad_key_length": None,
        "pre_allocate_kv_cache": None,
        "validate_runner_input": None,
    }
)
NEO_DEFAULTS: dict[str, Any] = UNUSED | {
    "vocab_size": 50257,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 2048,
    "intermediate_size": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "attention_types": [[["global", "local"], 12]],
    "attention_layers": None,
    "window_size": 256,
    "resid_dropout": 0.0,
    "embed_dropout": 0.0,
    "attention_dropout": 0.0,
    "classifier_dropout": 0.1,
    "tie_word_embeddings": True,
}
KINDS = {"global": cfg.Causal, "local": cfg.Window}


def read_gpt2(s: Settings) -> cfg.ModelConfig:
    one_key = s.has_default("multi_query") and s.flag("multi_query")
    by_layer = s.has_default("scale_attn_by_inverse_layer_idx") and s.flag("scale_attn_by_inverse_layer_idx")
    H, D = s.integer("num_attention_heads"), head_width(s)
    scale = D**-0.5 if s.flag("scale_attn_weights") else 1.0
    norm = layer_norm(s, "layer_norm_epsilon")

    def block(layer: int) -> cfg.BlockConfig:
        attention = cfg.Attention(
            H,
            1 if one_key else H,
            score=cfg.Score(scale=scale / (layer + 1) if by_layer else scale),
            bias=cfg.PROJECTIONS,
            dropout=s.number("attn_pdrop"),
        )
        return cfg.BlockConfig(attention, mlp(s), norm, dropout=s.number("resid_pdrop"))

    blocks = [block(layer) for layer in range(s.integer("num_hidden_layers"))]
    return decoder(s, blocks, norm, cfg.Embedding(cfg.Learned(), dropout=s.number("embd_pdrop")))


def write_gpt2(model: cfg.ModelConfig) -> dict[str, Any]:
    scales = [score.scale for score in _scores(model)]
    return classic_settings(
        model,
        GPT2_DEFAULTS,
        SPELLING,
        scale_attn_weights=scales[0] is None,
        scale_attn_by_inverse_layer_idx=len(set(scales)) > 1,
    )


def write_bigcode(model: cfg.ModelConfig) -> dict[str, Any]:
    attention = require_type(model.blocks[0].attention, cfg.Attention)
    is_scaled = attention.score.scale is None
    one_key = attention.resolved_kv_heads == 1
    return classic_settings(model, BIGCODE_DEFAULTS, SPELLING, scale_attn_weights=is_scaled, multi_query=one_key)


def gpt2_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    """GPT-2 stores its linear layers as convolutions, with kernels (inputs, outputs), as we do."""
    qkv = fused(model, "transformer.h.{}.attn.c_attn", QKV, (model.width,) * 3, axis=1)
    return by_name(model, NAMES, qkv, transpose=False)


def bigcode_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    """One tensor holds all queries, the key and the value; without multi-query, query, key and value of each head."""
    attention = require_type(model.blocks[0].attention, cfg.Attention)
    C, D = model.width, attention.resolved_head_width(model.width)
    if attention.resolved_kv_heads == 1:
        return by_name(model, NAMES, fused(model, "transformer.h.{}.attn.c_attn", QKV, (C, D, D)))
    heads = attention.heads
    return by_name(model, NAMES, fused(model, "transformer.h.{}.attn.c_attn", QKV, (C, C, C), groups=heads))


def read_neo(s: Settings) -> cfg.ModelConfig:
    kinds = []
    for part in s.listed("attention_types"):
        if not isinstance(part, list | tuple) or len(part) != 2 or not isinstance(part[0], list | tuple):
            raise ConfigError(f'config.json has "attention_types" with {shown(part)}, not a list of kinds and a number')
        times = checked_whole("attention_types", part[1], 1, s.integer("num_hidden_layers"))
        kinds += [str(kind) for kind in part[0]] * times
    if s["attention_layers"] is not None and s.listed("attention_layers") != kinds:
        raise ConfigError('config.json has "attention_layers" that differ from its "attention_types": remove them')
    if len(kinds) != s.integer("num_hidden_layers") or not set(kinds) <= set(KINDS):
        raise ConfigError(
            f'config.json has "attention_types" for layers {shown(kinds)}, and needs {s["num_hidden_layers"]} of'
            f" {' and '.join(KINDS)}"
        )
    norm = layer_norm(s, "layer_norm_epsilon")

    def block(kind: str) -> cfg.BlockConfig:
        attention = cfg.Attention(
            s.integer("num_attention_heads"),
            mask=cfg.Window(s.integer("window_size")) if kind == "local" else cfg.Causal(),
            score=cfg.Score(scale=1.0),
            bias=("output",),
            dropout=s.number("attention_dropout"),
        )
        return cfg.BlockConfig(attention, mlp(s), norm, dropout=s.number("resid_dropout"))

    embedding = cfg.Embedding(cfg.Learned(), dropout=s.number("embed_dropout"))
    return decoder(s, [block(kind) for kind in kinds], norm, embedding)


def write_neo(model: cfg.ModelConfig) -> dict[str, Any]:
    masks = [require_type(attention, cfg.Attention).mask for attention in model.attentions]
    kinds = ["local" if isinstance(mask, cfg.Window) else "global" for mask in masks]
    windows = [mask.size for mask in masks if isinstance(mask, cfg.Window)]
    window = {"window_size": windows[0]} if windows else {}
    return classic_settings(model, NEO_DEFAULTS, NEO_SPELLING, attention_types=[[kinds, 1]], **window)


def neo_rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    return by_name(model, NEO_NAMES)


def _scores(model: cfg.ModelConfig) -> list[cfg.Score]:
    return [require_type(attention, cfg.Attention).score for attention in model.attentions]


MASKS = ("*.attn.bias", "*.attn.masked_bias", "*.attn.attention.bias", "*.attn.attention.masked_bias")
FAMILIES = [
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        GPT2_DEFAULTS,
        read_gpt2,
        write_gpt2,
        gpt2_rows,
        prefix="transformer.",
        ignored=MASKS,
        aliases=SPELLING,
    ),
    Family(
        "gpt_bigcode",
        "GPTBigCodeForCausalLM",
        BIGCODE_DEFAULTS,
        read_gpt2,
        write_bigcode,
        bigcode_rows,
        prefix="transformer.",
        ignored=MASKS,
        aliases=SPELLING,
    ),
    Family(
        "gpt_neo",
        "GPTNeoForCausalLM",
        NEO_DEFAULTS,
        read_neo,
        write_neo,
        neo_rows,
        prefix="transformer.",
        ignored=MASKS,
        aliases=NEO_SPELLING,
    ),
]
