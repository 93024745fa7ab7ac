"""Which module each configured attention is. A new kind is entered here, or from outside by `register_attention`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

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
    cfg.Linear: LinearAttention,
    cfg.Delta: GatedDeltaNet,
    cfg.Average: AverageAttention,
}
M = TypeVar("M", bound=type[Mixer])


def register_attention(kind: type[cfg.AttentionConfig]) -> Callable[[M], M]:
    """Class decorator: the `Mixer` below it is the implementation of the configuration type `kind`. Training, decoding
    and `load_run` then take it as they take the package's own.
    """

    def enter(module: M) -> M:
        ATTENTIONS[kind] = module
        return module

    return enter


def mixer_of(attention: cfg.AttentionConfig) -> type[Mixer]:
    """The module of a choice of attention."""
    return implementation(ATTENTIONS, attention)
