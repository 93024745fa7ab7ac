"""Llama (Touvron et al. 2023, arXiv:2302.13971) and the families that differ from it in a setting or two."""

from __future__ import annotations

from typing import Any

from gpt_jax import config as cfg
from gpt_jax.interop.families.common import DEFAULTS, LLAMA, attention, decoder, gated, rms, written
from gpt_jax.interop.family import Family, Row, by_name
from gpt_jax.interop.settings import Settings


def llama_rows(model: cfg.ModelConfig) -> tuple[Row, ...]:
    return by_name(model, LLAMA)


LLAMA_DEFAULTS = DEFAULTS | {"mlp_bias": False, "head_dim": None}


def read_llama(s: Settings) -> cfg.ModelConfig:
    """Versions 1 to 3."""
    return decoder(s, cfg.BlockConfig(attention(s), gated(s), rms(s)), rms(s))


def write_llama(model: cfg.ModelConfig) -> dict[str, Any]:
    return written(model, LLAMA_DEFAULTS)


FAMILIES = [Family("llama", "LlamaForCausalLM", LLAMA_DEFAULTS, read_llama, write_llama, llama_rows)]
