"""What attention mixes, where it comes from, and what gates its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from gpt_jax.config.checks import require_positive
from gpt_jax.config.variant import Variant

Projection = Literal["query", "key", "value", "output"]
PROJECTIONS: tuple[Projection, ...] = ("query", "key", "value", "output")


class GateConfig(Variant):
    """A sigmoid of the layer's input that multiplies the heads' outputs (Qiu et al. 2025, arXiv:2505.06708)."""


@dataclass(frozen=True)
class ElementwiseGate(GateConfig):
    """One number for each element of each head's output, H·E."""


@dataclass(frozen=True)
class HeadwiseGate(GateConfig):
    """One number for each head, H."""


class ValueEmbeddingConfig(Variant):
    """What a token adds to its values by its id alone."""


@dataclass(frozen=True)
class ValueEmbedding(ValueEmbeddingConfig):
    """A learned vector for each id, as wide as all the values of a token."""


class ValueResidualConfig(Variant):
    """How the values of an earlier layer enter those of this one."""


@dataclass(frozen=True)
class ValueResidual(ValueResidualConfig):
    """(1 − s)·own + s·first: `first` are the values of the lowest layer with a value residual, and s, one for each
    layer, is learned from `initial` on (Zhou et al. 2024, arXiv:2410.17897).
    """

    initial: float = 0.5


class ValueConfig(Variant):
    """Where the keys and values of a layer come from.

    `made` names what the layer projects from its own input beside the queries; decoding caches exactly that.
    """

    made: ClassVar[tuple[Projection, ...]]

    def resolved_width(self, head_width: int) -> int:
        """E, the width of a value, where keys have width D."""
        return head_width


@dataclass(frozen=True)
class Projected(ValueConfig):
    """Keys and values are projections of the layer's input. `width` None: as wide as keys."""

    width: int | None = None
    embedding: ValueEmbeddingConfig | None = None
    residual: ValueResidualConfig | None = None

    made = ("key", "value")

    def __post_init__(self) -> None:
        require_positive(self.width, "attention.value.width")

    def resolved_width(self, head_width: int) -> int:
        """E, the width of a value, where keys have width D."""
        return head_width if self.width is None else self.width


@dataclass(frozen=True)
class FromKey(ValueConfig):
    """The value is the key before its norm and rotation, so that one of them is cached, not two."""

    made = ("key",)


@dataclass(frozen=True)
class Shared(ValueConfig):
    """Keys and values are those of the nearest layer below that projects its own (cross-layer attention, CLA: Brandon
    et al. 2024, arXiv:2405.12981).

    `width` is the width of its values, None: as wide as keys. It is repeated here because the settings of one layer
    alone decide the shapes of its parameters.
    """

    width: int | None = None

    made = ()

    def __post_init__(self) -> None:
        require_positive(self.width, "attention.value.width")

    def resolved_width(self, head_width: int) -> int:
        """E, the width of a value, where keys have width D."""
        return head_width if self.width is None else self.width
