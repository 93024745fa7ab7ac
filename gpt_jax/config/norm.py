"""Normalization."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_jax.config.checks import require_positive
from gpt_jax.conversion import Variant


class NormConfig(Variant):
    """Normalization of each position's vector."""


@dataclass(frozen=True)
class LayerNorm(NormConfig):
    """Mean 0, variance 1, then an affine map (Ba et al. 2016, arXiv:1607.06450)."""

    eps: float = 1e-5
    scale: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        require_positive(self.eps, "norm.eps")


@dataclass(frozen=True)
class RmsNorm(NormConfig):
    """Root mean square 1, then a scale (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    eps: float = 1e-6
    scale: bool = True

    def __post_init__(self) -> None:
        require_positive(self.eps, "norm.eps")
