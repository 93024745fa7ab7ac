"""Position schemes: within attention (RoPE, ALiBi, T5) and added to the embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt_jax.config.checks import require, require_positive
from gpt_jax.config.variant import Variant


class RopeScaling(Variant):
    """How RoPE's frequencies are lowered for rows longer than `original_length`, the length of pretraining.

    Scalings that depend on the length of a row use its declared length: the capacity of the cache when decoding, the
    length of the input otherwise.
    """


@dataclass(frozen=True)
class LinearScaling(RopeScaling):
    """Position interpolation: position p is rotated like p / `factor` (Chen et al. 2023, arXiv:2306.15595)."""

    factor: float

    def __post_init__(self) -> None:
        _require_stretch(self, self.factor)


@dataclass(frozen=True)
class DynamicNtk(RopeScaling):
    """Dynamic NTK-aware scaling: theta grows with the length of the row beyond `original_length` (section 3 of Peng et
    al. 2023, arXiv:2309.00071).
    """

    factor: float
    original_length: int

    def __post_init__(self) -> None:
        _require_stretch(self, self.factor, self.original_length)


@dataclass(frozen=True)
class Yarn(RopeScaling):
    """YaRN: keeps the frequencies of pairs that make more than `beta_fast` turns in `original_length`, divides those of
    pairs that make fewer than `beta_slow` turns by `factor`, and interpolates linearly between them (Peng et al. 2023,
    arXiv:2309.00071). `truncate` rounds the ends of that ramp to whole pairs.

    `attention_factor` multiplies rotated queries and rotated keys. None: 1 + 0.1 ln `factor`, or, with DeepSeek's
    `mscale` and `mscale_all_dim`, (1 + 0.1 mscale ln factor) / (1 + 0.1 mscale_all_dim ln factor).
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        _require_stretch(self, self.factor, self.original_length)
        require(
            0 < self.beta_slow < self.beta_fast,
            f"Yarn.beta_slow ({self.beta_slow}) must be positive and less than Yarn.beta_fast ({self.beta_fast})",
        )
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            require_positive(getattr(self, name), f"Yarn.{name}")
        require(
            (self.mscale is None) == (self.mscale_all_dim is None),
            "Yarn.mscale and Yarn.mscale_all_dim act together: set both or neither",
        )
        require(
            self.attention_factor is None or self.mscale is None,
            "Yarn.mscale and Yarn.mscale_all_dim determine the attention factor: set them or Yarn.attention_factor",
        )


@dataclass(frozen=True)
class Llama3Scaling(RopeScaling):
    """Llama 3: keeps the frequencies of pairs that make more than `high` turns in `original_length`, divides those of
    pairs that make fewer than `low` turns by `factor`, and interpolates between them (Grattafiori et al. 2024,
    arXiv:2407.21783).
    """

    factor: float
    low: float
    high: float
    original_length: int

    def __post_init__(self) -> None:
        _require_stretch(self, self.factor, self.original_length)
        require(
            0 < self.low < self.high,
            f"Llama3Scaling.low ({self.low}) must be positive and less than Llama3Scaling.high ({self.high})",
        )


@dataclass(frozen=True)
class LongRope(RopeScaling):
    """LongRoPE: divides the frequency of each pair by a number of its own, from `short` in rows of up to
    `original_length`, from `long` in longer rows (Ding et al. 2024, arXiv:2402.13753).

    `attention_factor` multiplies rotated queries and rotated keys. Alternatively, `factor`, the intended length of rows
    over `original_length`, sets it to √(1 + ln factor / ln original_length).
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_length: int
    factor: float | None = None
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        require(self.original_length > 1, f"LongRope.original_length must be over 1, not {self.original_length}")
        if self.factor is not None:
            _require_stretch(self, self.factor)
        require_positive(self.attention_factor, "LongRope.attention_factor")
        require(
            (self.factor is None) != (self.attention_factor is None),
            "LongRope.factor determines the attention factor: set it or LongRope.attention_factor, not both",
        )
        require(
            len(self.short) == len(self.long),
            "LongRope.short and LongRope.long must have a number for each rotated pair, not "
            f"{len(self.short)} and {len(self.long)}",
        )
        require(min(self.short + self.long, default=0.0) > 0, "LongRope.short and LongRope.long must be positive")


def _require_stretch(scaling: RopeScaling, factor: float, original_length: int | None = None) -> None:
    name = type(scaling).__name__
    require(factor >= 1, f"{name}.factor must be at least 1, not {factor}, because it extends rows")
    require_positive(original_length, f"{name}.original_length")


class PositionConfig(Variant):
    """How attention depends on the positions of query and key."""


@dataclass(frozen=True)
class Rope(PositionConfig):
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of the first `fraction` of each head's width.

    `interleaved` pairs neighbouring elements (GPT-J) instead of elements of the two halves (Llama).
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    interleaved: bool = False
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, f"Rope.fraction must lie in (0, 1], not {self.fraction}")
        require_positive(self.theta, "Rope.theta")
        require(
            self.theta > 1 or not isinstance(self.scaling, Yarn),
            f"Rope.theta must be over 1 with Yarn, which needs pairs of different frequencies, not {self.theta}",
        )

    def check(self, head_width: int) -> None:
        """Raises ConfigError if heads of this width cannot be rotated in this way."""
        pairs = rope_width(self, head_width) // 2
        require(pairs > 0, f"Rope rotates pairs, and a fraction {self.fraction} of head width {head_width} holds none")
        if isinstance(self.scaling, DynamicNtk):
            require(pairs > 1, "DynamicNtk changes all pairs but the first, and there is no other: raise Rope.fraction")
        if isinstance(self.scaling, LongRope):
            given = len(self.scaling.short)
            require(
                given == pairs,
                f"LongRope.short and LongRope.long need a number for each rotated pair, {pairs} with head width"
                f" {head_width}, not {given}",
            )


@dataclass(frozen=True)
class Alibi(PositionConfig):
    """ALiBi: a penalty proportional to the distance, with one slope per head (Press et al. 2021, arXiv:2108.12409).

    If H is a power of two, head h of 1 … H has the slope `scale` · 2^(−`bias_max` · h / H). The defaults are those of
    BLOOM and MPT. Falcon also divides the bias by √D (`scale` = D^−½), and rounds slopes, positions and their products,
    whose differences are the penalties, to bfloat16 (`rounded`).
    """

    bias_max: float = 8.0
    scale: float = 1.0
    rounded: bool = False

    def __post_init__(self) -> None:
        require_positive(self.bias_max, "Alibi.bias_max")
        require_positive(self.scale, "Alibi.scale")


@dataclass(frozen=True)
class T5Bias(PositionConfig):
    """T5: a learned bias for each head and each of `buckets` ranges of distance. Half of the buckets hold one distance
    each; the others grow logarithmically, and the last holds `max_distance` and beyond (Raffel et al. 2020,
    arXiv:1910.10683).
    """

    buckets: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        require(self.buckets > 1, f"T5Bias.buckets must be at least 2, not {self.buckets}")
        require(
            self.max_distance > self.buckets // 2,
            f"T5Bias.max_distance ({self.max_distance}) must be greater than half of T5Bias.buckets ({self.buckets}),"
            " because half of the buckets hold one distance each",
        )


class AbsolutePositionConfig(Variant):
    """A position code that is added to the token embedding."""


@dataclass(frozen=True)
class Learned(AbsolutePositionConfig):
    """A learned table of `length` positions (None: context_length), which is a hard limit on the length of the input.
    `offset` is the row of position 0; earlier rows are unused (OPT: 2).
    """

    length: int | None = None
    offset: int = 0

    def __post_init__(self) -> None:
        require_positive(self.length, "embedding.position.length")
        require(self.offset >= 0, f"embedding.position.offset must be 0 or more, not {self.offset}")


@dataclass(frozen=True)
class Sinusoidal(AbsolutePositionConfig):
    """Fixed sines and cosines whose frequencies fall geometrically from 1 radian per position to nearly 1/`theta`
    (Vaswani et al. 2017, arXiv:1706.03762).

    `endpoint` makes the last frequency exactly 1/`theta` (tensor2tensor, XGLM). `offset` is added to positions (XGLM:
    2).
    """

    theta: float = 10_000.0
    endpoint: bool = False
    offset: int = 0

    def __post_init__(self) -> None:
        require_positive(self.theta, "embedding.position.theta")
        require(self.offset >= 0, f"embedding.position.offset must be 0 or more, not {self.offset}")


def rope_width(rope: Rope, head_width: int) -> int:
    """The (even) number of elements of a head that are rotated."""
    return 2 * math.floor(rope.fraction * head_width / 2)
