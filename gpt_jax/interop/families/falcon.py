"""Falcon (Almazrouei et al. 2023, arXiv:2311.16867): the 7B with one key head, the 40B and 11B with grouped queries,
and the RefinedWeb models with ALiBi and biases.
"""

from __future__ import annotations

import warnings
from typing import Any

from gpt_jax import config as cfg
from gpt_jax.config.errors import ConfigError
from gpt_jax.interop.families.classic import QKV, classic_settings, layer_norm, mlp
from gpt_jax.interop.families.common import decoder, head_width, require_type
from gpt_jax.interop.family import Family, TensorRow, by_name, fused
from gpt_jax.interop.rope import ROPE_KEYS, read_rope
from gpt_jax.interop.settings import Settings

NAMES = {
    "embedding": "transformer.word_embeddings",
    "blocks/{}/attention/output": "transformer.h.{}.self_attention.dense",
    "blocks/{}/mlp/up": "transformer.h.{}.mlp.dense_h_to_4h",
    "blocks/{}/mlp/down": "transformer.h.{}.mlp.dense_4h_to_h",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
}
# type of residual connection → its norms
NORMS = {
    "pre": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "parallel": {"norm": "input_layernorm"},
    "parallel_norms": {"attention_norm": "ln_attn", "mlp_norm": "ln_mlp"},
}
SPELLING = {"ffn_hidden_size": "intermediate_size"}
DEFAULTS: dict[str, Any] = ROPE_KEYS | {
    "vocab_size": 65024,
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "num_kv_heads": None,
    "num_ln_in_parallel_attn": None,
    "intermediate_size": None,
    "activation": "gelu",
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 2048,
    "alibi": False,
    "new_decoder_architecture": False,
    "multi_query": True,
    "parallel_attn": True,
    "bias": False,
    "attn_implementation": None,
    "transformers_version": None,
    "apply_residual_connection_post_layernorm": False,  # of older files
    "hidden_dropout": 0.0,  # applied to the sum of both sublayers, which gpt_jax cannot do
    "attention_dropout": 0.0,  # not applied with RoPE
    "tie_word_embeddings": True,
}
UNWRITTEN = (
    "rope_scaling rope_theta attn_implementation transformers_version apply_residual_connection_post_layernorm"
    " hidden_dropout"
).split()
EAGER_SINCE = "5."  # versions of transformers


def read(s: Settings) -> cfg.ModelConfig:
    s.expect("apply_residual_connection_post_layernorm", (False, None), "residual stream that starts after a norm")
    D, bias = head_width(s), s.flag("bias")
    norm = layer_norm(s)
    position: cfg.PositionConfig = _alibi(s, D) if s.flag("alibi") else read_rope(s, D)
    attention = cfg.Attention(
        s.integer("num_attention_heads"),
        _kv_heads(s),
        position=position,
        bias=cfg.PROJECTIONS if bias else (),
    )
    block = cfg.BlockConfig(attention, mlp(s, "activation", bias), norm, _residual(s))
    return decoder(s, block, norm)


def _alibi(s: Settings, D: int) -> cfg.Alibi:
    """Returns ALiBi with penalties divided by √D, like the scores they are added to.

    The "eager" attention of `transformers` 5 adds them twice, and "sdpa" once, as in Falcon's training. Which one a
    model is meant for stands in `attn_implementation`, which config.json may lack.
    """
    implementation = s["attn_implementation"]
    if implementation is None and str(s["transformers_version"] or "").startswith(EAGER_SINCE):
        warnings.warn(
            'config.json of a Falcon with ALiBi has no "attn_implementation", and in transformers 5 "eager" adds ALiBi'
            ' twice and "sdpa" once: it is read as "eager"; set it to "sdpa" for the other',
            stacklevel=2,
        )
        implementation = "eager"
    return cfg.Alibi(scale=(2 if implementation == "eager" else 1) * D**-0.5, rounded=True)


def _kv_heads(s: Settings) -> int:
    """Returns K, which only the new architecture gives as `num_kv_heads`."""
    H = s.integer("num_attention_heads")
    K = s.optional_integer("num_kv_heads")
    if s.flag("new_decoder_architecture"):
        return H if K is None else K
    if s.flag("multi_query"):
        return 1
    if K not in (None, H):
        raise ConfigError(
            f'config.json has "num_kv_heads": {K}, and Falcon has other than {H} only with "new_decoder_architecture"'
            ' or "multi_query"'
        )
    return H


def _residual(s: Settings) -> Any:
    is_new, is_parallel = s.flag("new_decoder_architecture"), s.flag("parallel_attn")
    if is_new and not is_parallel:
        raise ConfigError('config.json has "new_decoder_architecture" without "parallel_attn", which no Falcon has')
    if not is_parallel:
        return "pre"
    if not is_new:
        s.expect("num_ln_in_parallel_attn", (None, 1), 'Falcon with two norms without "new_decoder_architecture"')
        return "parallel"
    s.expect("num_ln_in_parallel_attn", (None, 1, 2), "Falcon with more than two norms")
    return "parallel" if s["num_ln_in_parallel_attn"] == 1 else "parallel_norms"


def write(model: cfg.ModelConfig) -> dict[str, Any]:
    """Writes the old architecture if it can represent the model, else the new one."""
    block = model.blocks[0]
    attention = require_type(block.attention, cfg.Attention)
    H, K, residual = attention.heads, attention.resolved_kv_heads, block.residual
    is_new = residual == "parallel_norms" or K not in (1, H)
    position, D = attention.position, attention.resolved_head_width(model.width)
    implementation = {}
    if isinstance(position, cfg.Alibi):
        implementation["attn_implementation"] = "eager" if position.scale == 2 * D**-0.5 else "sdpa"
    return implementation | classic_settings(
        model,
        {key: value for key, value in DEFAULTS.items() if key not in UNWRITTEN},
        SPELLING,
        num_kv_heads=K,
        num_ln_in_parallel_attn=(2 if residual == "parallel_norms" else 1) if is_new else None,
        alibi=isinstance(position, cfg.Alibi),
        new_decoder_architecture=is_new,
        multi_query=K == 1,
        parallel_attn=residual != "pre",
        bias=require_type(block.mlp, cfg.Mlp).bias,
        attention_dropout=0.0,
    )


def rows(model: cfg.ModelConfig) -> tuple[TensorRow, ...]:
    """For each key head, its queries, its key and its value in turn form one tensor."""
    block = model.blocks[0]
    attention = require_type(block.attention, cfg.Attention)
    K, D = attention.resolved_kv_heads, attention.resolved_head_width(model.width)
    norms = {f"blocks/{{}}/{ours}": f"transformer.h.{{}}.{theirs}" for ours, theirs in NORMS[block.residual].items()}
    name, widths = "transformer.h.{}.self_attention.query_key_value", (model.width, K * D, K * D)
    return by_name(model, NAMES | norms, fused(model, name, QKV, widths, groups=K))


IGNORED = ("*.rotary_emb.inv_freq", "*.rotary.inv_freq", "*.maybe_rotary.inv_freq")
FAMILIES = [
    Family(
        "falcon",
        "FalconForCausalLM",
        DEFAULTS,
        read,
        write,
        rows,
        "transformer.",
        IGNORED,
        aliases=SPELLING | {"n_embed": "hidden_size", "_attn_implementation": "attn_implementation"},
        inert=("ff_factor",),
    ),
]
