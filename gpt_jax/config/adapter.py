"""Adapters: parameters added to the projections of a pretrained model, which stay frozen."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_jax.config.checks import require, require_positive, require_probability
from gpt_jax.config.variant import Variant


class AdapterConfig(Variant):
    """Additional parameters of a layer. All other parameters of the model are frozen.

    `targets` are globs (`model.paths.matches`) of the adapted projections' paths below the layer, such as
    `attention/*`, `mlp/down` or `**`.
    """

    targets: tuple[str, ...]


@dataclass(frozen=True)
class Lora(AdapterConfig):
    """LoRA: x @ W + (alpha / rank) · dropout(x) @ A @ B, where A (C, rank) is initially normal with standard deviation
    1/√C and B (rank, F) zero (Hu et al. 2021, arXiv:2106.09685).
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("attention/query", "attention/value")

    def __post_init__(self) -> None:
        require_positive(self.rank, "adapter.rank")
        require_positive(self.alpha, "adapter.alpha")
        require_probability(self.dropout, "adapter.dropout")
        require(len(self.targets) > 0, 'adapter.targets names no projection: give globs such as "attention/*"')

    @property
    def scale(self) -> float:
        """The factor on A @ B."""
        return self.alpha / self.rank
