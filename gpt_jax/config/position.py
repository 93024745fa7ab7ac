"""How the model knows where a token stands."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt_jax.config.checks import require, require_positive
from gpt_jax.config.variant import Variant


class RopeScaling(Variant):
    """How RoPE's frequencies are slowed down for rows longer than the model was trained at, `original_length`.

    Where that depends on how long a row is, it is the declared length: the cache's capacity when decoding, the input's
    in a plain forward pass.
    """


@dataclass(frozen=True)
class LinearScaling(RopeScaling):
    """Position p turns like p / `factor` (position interpolation: Chen et al. 2023, arXiv:2306.15595)."""

    factor: float

    def __post_init__(self) -> None:
        _require_stretch(self, self.factor)


@dataclass(frozen=True)
class DynamicNtk(RopeScaling):
    """A larger theta, the longer a row is beyond `original_length` (NTK-aware scaling: section 3 of Peng et al. 2023,
    arXiv:2309.00071).
    """

    factor: float
    original_length: int

    def __post_init__(self) -> None:
        _require_stretch(self, self.factor, self.original_length)


@dataclass(frozen=True)
class Yarn(RopeScaling):
    """Leaves the pairs that turn more than `beta_fast` times in `original_length`, divides the frequencies of those
    that turn less than `beta_slow` times by `factor`, and goes from one to the other in a line (Peng et al. 2023,
    arXiv:2309.00071); `truncate` starts and ends that line at whole pairs.

    `attention_factor` is on queries and keys alike. None: 1 + 0.1 ln `factor`, or with both of DeepSeek's `mscale` and
    `mscale_all_dim` (1 + 0.1 mscale ln factor) / (1 + 0.1 mscale_all_dim ln factor).
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
            "Yarn.attention_factor stands for what Yarn.mscale and Yarn.mscale_all_dim give: set it or them",
        )


@dataclass(frozen=True)
class Llama3Scaling(RopeScaling):
    """Leaves the pairs that turn more than `high` times in `original_length`, divides the frequencies of those that
    turn less than `low` times by `factor`, and goes smoothly from one to the other (Llama 3: Grattafiori et al. 2024,
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
    """Divides each pair's frequency by its own number: of `short` in rows up to `original_length`, of `long` in longer
    ones (Ding et al. 2024, arXiv:2402.13753).

    `attention_factor` is on queries and keys alike; or give `factor`, how many times longer than `original_length` rows
    are meant to be, for √(1 + ln factor / ln original_length).
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
            "LongRope.attention_factor stands for what LongRope.factor gives: set one of the two",
        )
        require(
            len(self.short) == len(self.long),
            f"LongRope.short has {len(self.short)} numbers and LongRope.long {len(self.long)}: give one a rotated pair",
        )
        require(min(self.short + self.long, default=0.0) > 0, "LongRope.short and LongRope.long hold positive numbers")


def _require_stretch(scaling: RopeScaling, factor: float, original_length: int | None = None) -> None:
    name = type(scaling).__name__
    require(factor >= 1, f"{name}.factor must be at least 1, not {factor}: it makes rows longer")
    require_positive(original_length, f"{name}.original_length")


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
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, f"Rope.fraction must lie in (0, 1], not {self.fraction}")
        require_positive(self.theta, "Rope.theta")
        require(
            self.theta > 1 or not isinstance(self.scaling, Yarn),
            f"Yarn finds pairs by how fast they turn, and with Rope.theta {self.theta} none is slower than the first:"
            " give a theta over 1",
        )

    def check(self, head_width: int) -> None:
        """Refuses what can't be in heads of this width."""
        pairs = rope_width(self, head_width) // 2
        require(pairs > 0, f"Rope rotates pairs, and a fraction {self.fraction} of head width {head_width} holds none")
        if isinstance(self.scaling, DynamicNtk):
            require(pairs > 1, "DynamicNtk leaves the fastest pair alone, and there is no other: rotate a wider part")
        if isinstance(self.scaling, LongRope):
            given = len(self.scaling.short)
            require(
                given == pairs,
                f"LongRope.short and LongRope.long need a number for each pair that is rotated, {pairs} with head width"
                f" {head_width}, not {given}",
            )


@dataclass(frozen=True)
class Alibi(PositionConfig):
    """A penalty proportional to the distance, one slope a head (Press et al. 2021, arXiv:2108.12409).

    With a power of two as H, head h of 1 … H has the slope `scale` · 2^(−`bias_max` · h / H). BLOOM and MPT are the
    defaults; Falcon divides the bias, too, by √D: `scale` = D^−½. `rounded`: slopes, positions and their
    products, whose differences are the penalties, are each rounded to bfloat16 (Falcon again).
    """

    bias_max: float = 8.0
    scale: float = 1.0
    rounded: bool = False

    def __post_init__(self) -> None:
        require_positive(self.bias_max, "Alibi.bias_max")
        require_positive(self.scale, "Alibi.scale")


@dataclass(frozen=True)
class T5Bias(PositionConfig):
    """A learned bias for each head and each of some ranges of distance, `buckets` in all: half of them hold one
    distance each, the others ever more, `max_distance` and beyond in the last (Raffel et al. 2020, arXiv:1910.10683).
    """

    buckets: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        require(self.buckets > 1, f"T5Bias.buckets must be at least 2, not {self.buckets}")
        require(
            self.max_distance > self.buckets // 2,
            f"T5Bias.max_distance ({self.max_distance}) must be over half of T5Bias.buckets ({self.buckets}),"
            " which hold one distance each",
        )


class AbsolutePositionConfig(Variant):
    """A code of each position that is added to its token's embedding."""


@dataclass(frozen=True)
class Learned(AbsolutePositionConfig):
    """A table for `length` positions (None: context_length), the one position scheme that is a hard limit on the
    input's length. `offset` is the row of position 0; those before it are read by nobody (OPT: 2).
    """

    length: int | None = None
    offset: int = 0

    def __post_init__(self) -> None:
        require_positive(self.length, "embedding.position.length")
        require(self.offset >= 0, f"embedding.position.offset must be 0 or more, not {self.offset}")


@dataclass(frozen=True)
class Sinusoidal(AbsolutePositionConfig):
    """Fixed sines and cosines of pairs that turn ever slower, from 1 radian a position almost to 1/`theta` (Vaswani et
    al. 2017, arXiv:1706.03762).

    `endpoint`: the last pair turns by just 1/`theta` (as in tensor2tensor and XGLM). `offset` is the number that
    position 0 has (XGLM: 2).
    """

    theta: float = 10_000.0
    endpoint: bool = False
    offset: int = 0

    def __post_init__(self) -> None:
        require_positive(self.theta, "embedding.position.theta")
        require(self.offset >= 0, f"embedding.position.offset must be 0 or more, not {self.offset}")


def rope_width(rope: Rope, head_width: int) -> int:
    """The number of elements of a head that are rotated, an even number."""
    return 2 * math.floor(rope.fraction * head_width / 2)
