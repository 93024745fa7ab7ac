"""The module of each attention that can be configured. A new kind gets a row here, or from outside the package by
`register_attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax

from gpt_jax import config as cfg
from gpt_jax.config.variant import implementation
from gpt_jax.model.attention import MultiHeadAttention
from gpt_jax.model.average import AverageAttention
from gpt_jax.model.delta import GatedDeltaNet
from gpt_jax.model.differential import DifferentialAttention
from gpt_jax.model.latent import LatentAttention
from gpt_jax.model.linear_attention import LinearAttention
from gpt_jax.model.mixer import Mixer

ATTENTIONS: dict[type[cfg.AttentionConfig], type[Mixer]] = {
    cfg.Attention: MultiHeadAttention,
    cfg.Differential: DifferentialAttention,
    cfg.Latent: LatentAttention,
    cfg.LinearAttention: LinearAttention,
    cfg.Delta: GatedDeltaNet,
    cfg.Average: AverageAttention,
}
M = TypeVar("M", bound=type[Mixer])


def register_attention(kind: type[cfg.AttentionConfig]) -> Callable[[M], M]:
    """Class decorator: makes the decorated `Mixer` the implementation of the configuration type `kind`, for training,
    decoding and `load_run` alike. In place of an earlier implementation, as where a notebook's cell runs again, it
    makes the programs that were compiled with that one compile again.
    """

    def enter(module: M) -> M:
        if ATTENTIONS.setdefault(kind, module) is not module:
            ATTENTIONS[kind] = module
            jax.clear_caches()
        return module

    return enter


def mixer_of(attention: cfg.AttentionConfig) -> type[Mixer]:
    """The module class of a choice of attention."""
    return implementation(ATTENTIONS, attention)
