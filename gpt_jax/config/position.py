"""How the model knows where a token stands."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt_jax.config.checks import require, require_positive
from gpt_jax.conversion import Variant


class PositionConfig(Variant):
    """How attention knows the distance between a query and a key."""


@dataclass(frozen=True)
class Rope(PositionConfig):
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864) of the first `fraction` of each head's width.

    `interleaved` rotates neighbouring pairs (GPT-J) instead of the two halves (Llama).
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    interleaved: bool = False

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, f"Rope.fraction must lie in (0, 1], not {self.fraction}")
        require_positive(self.theta, "Rope.theta")


@dataclass(frozen=True)
class Alibi(PositionConfig):
    """A penalty proportional to the distance, one slope a head (Press et al. 2021, arXiv:2108.12409)."""


class AbsolutePositionConfig(Variant):
    """A code of each position that is added to its token's embedding."""


@dataclass(frozen=True)
class Learned(AbsolutePositionConfig):
    """A table of `length` rows (None: context_length), the one position scheme that is a hard limit on the input's
    length.
    """

    length: int | None = None

    def __post_init__(self) -> None:
        require_positive(self.length, "embedding.position.length")


@dataclass(frozen=True)
class Sinusoidal(AbsolutePositionConfig):
    """Fixed sines and cosines (Vaswani et al. 2017, arXiv:1706.03762)."""

    theta: float = 10_000.0

    def __post_init__(self) -> None:
        require_positive(self.theta, "embedding.position.theta")


def rope_width(rope: Rope, head_width: int) -> int:
    """The number of elements of a head that are rotated, an even number."""
    return 2 * math.floor(rope.fraction * head_width / 2)
