"""The common part of families that predate Llama or are built like those: LayerNorm, MLPs without a gate, learned
positions, dropout, and different spellings of the same keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt_jax import config as cfg
from gpt_jax.interop.families.common import ACTIVATION_NAMES, activation, common_settings, require_type
from gpt_jax.interop.settings import Settings

QKV = ("attention/query", "attention/key", "attention/value")


def layer_norm(s: Settings, key: str = "layer_norm_epsilon", **changes: Any) -> cfg.LayerNorm:
    return cfg.LayerNorm(s.number(key), **changes)


def mlp(s: Settings, key: str = "activation_function", bias: bool = True) -> cfg.Mlp:
    """Returns an MLP of width `intermediate_size`, or of 4 C if that is null."""
    width = s.optional_integer("intermediate_size")
    return cfg.Mlp(4 * s.integer("hidden_size") if width is None else width, activation(s, key), bias)


def classic_settings(
    model: cfg.ModelConfig, defaults: Mapping[str, Any], spelling: Mapping[str, str] | None = None, **own: Any
) -> dict[str, Any]:
    """Returns the settings of `common_settings` in the spellings of these families.

    The values of norms, activations and dropouts are given under every name that a family may use, of which `defaults`
    selects some. `spelling` maps other names of the family to the usual keys.
    """
    block = model.blocks[0]
    attention, hidden = require_type(block.attention, cfg.Attention), require_type(block.mlp, cfg.MlpConfig)
    norm = require_type(block.norm, cfg.NormConfig)
    eps: float = getattr(norm, "eps", 0.0)
    name = ACTIVATION_NAMES[getattr(hidden, "activation", "gelu")]
    usual: dict[str, Any] = dict.fromkeys(("layer_norm_epsilon", "norm_epsilon", "norm_eps"), eps)
    usual |= dict.fromkeys(("activation_function", "activation"), name)
    usual |= dict.fromkeys(("resid_pdrop", "resid_dropout", "residual_dropout", "hidden_dropout"), block.dropout)
    usual |= dict.fromkeys(("embd_pdrop", "embed_dropout", "embedding_dropout"), model.embedding.dropout)
    usual |= {"attn_pdrop": attention.dropout, "dropout": block.dropout}
    native = {usual: theirs for theirs, usual in (spelling or {}).items()}
    values = common_settings(model, defaults, **usual | own)
    return {native[key] if key in native else key: value for key, value in values.items()}
