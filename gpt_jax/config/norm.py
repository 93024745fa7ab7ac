"""Normalization layers."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_jax.config.checks import require, require_positive
from gpt_jax.config.variant import Variant


class NormConfig(Variant):
    """Normalization over the last axis of each position's vector."""


@dataclass(frozen=True)
class LayerNorm(NormConfig):
    """Subtracts the mean, divides by the standard deviation, then applies `scale` and `bias` (Ba et al. 2016,
    arXiv:1607.06450).

    `unit_offset` stores scale − 1, so that weight decay pulls the scale towards 1 (Nemotron).
    """

    eps: float = 1e-5
    scale: bool = True
    bias: bool = True
    unit_offset: bool = False

    def __post_init__(self) -> None:
        require_positive(self.eps, "norm.eps")
        _require_scale(self)


@dataclass(frozen=True)
class RmsNorm(NormConfig):
    """Divides by the root mean square, then applies `scale` (Zhang & Sennrich 2019, arXiv:1910.07467).

    `unit_offset` stores scale − 1, so that weight decay pulls the scale towards 1 (Gemma).
    """

    eps: float = 1e-6
    scale: bool = True
    unit_offset: bool = False

    def __post_init__(self) -> None:
        require_positive(self.eps, "norm.eps")
        _require_scale(self)


def _require_scale(norm: LayerNorm | RmsNorm) -> None:
    require(
        norm.scale or not norm.unit_offset,
        "norm.unit_offset changes how the scale is stored: set norm.scale, or unset norm.unit_offset",
    )
