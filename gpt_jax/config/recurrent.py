"""Mixers whose memory has one size however long the row is: no softmax, a state in place of keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt_jax.config.attention import AttentionConfig, Heads
from gpt_jax.config.checks import require, require_positive, require_taps
from gpt_jax.config.norm import NormConfig, RmsNorm
from gpt_jax.config.position import PositionConfig, Rope
from gpt_jax.config.values import Projection

# What is left of a head's state at the next token. "fixed": 1 − 2^(−5−h) in head h (RetNet: Sun et al. 2023,
# arXiv:2307.08621). "gated": exp(−a · softplus(w·x + b)), as the token x decides (Mamba-2: Dao & Gu 2024,
# arXiv:2405.21060).
Decay = Literal["fixed", "gated"]


class _State(Heads):
    """What the kinds have in common: H heads, each with a state of D × E numbers."""

    value_width: int | None
    bias: tuple[Projection, ...]
    convolution: int | None

    def resolved_value_width(self, width: int) -> int:
        """E, the width of a value, in a model of width C."""
        return self.resolved_head_width(width) if self.value_width is None else self.value_width

    def check_fields(self) -> None:
        """Refuses what no kind can have."""
        for name in ("heads", "head_width", "value_width"):
            require_positive(getattr(self, name), f"attention.{name}")
        require_taps(self.convolution, "attention.convolution")
        require(len(set(self.bias)) == len(self.bias), f"attention.bias names a projection twice: {self.bias}")


@dataclass(frozen=True)
class LinearAttention(_State, AttentionConfig):
    """Linear attention: Σ f(q)·f(k) v over the tokens so far, from a state Σ f(k) vᵀ (Katharopoulos et al. 2020,
    arXiv:2006.16236).

    `head_width` None: C / H. `value_width` None: `head_width`. `feature_map` f: "elu" is elu + 1; None leaves queries
    and keys as they are. `normalize` divides by Σ f(q)·f(k), which RoPE leaves unrotated (RoFormer: Su et al. 2021,
    arXiv:2104.09864); without it scores are divided by √D. `decay`: what is left of the state at the next token,
    "fixed" for each head (RetNet) or "gated" by the token (as in Mamba-2); None: all of it. `bias` names the
    projections that have one. `convolution` is the taps of a short causal convolution on query, key and value.
    `output_norm` is on each head's output (RetNet, Lightning Attention); then `gate`, a function of the input,
    multiplies it.
    """

    heads: int
    head_width: int | None = None
    value_width: int | None = None
    feature_map: Literal["elu", "relu", "silu"] | None = "elu"
    normalize: bool = True
    decay: Decay | None = None
    position: PositionConfig | None = None
    bias: tuple[Projection, ...] = ()
    convolution: int | None = None
    output_norm: NormConfig | None = None
    gate: Literal["silu", "sigmoid"] | None = None

    def __post_init__(self) -> None:
        self.check_fields()
        require(
            not self.normalize or self.feature_map in ("elu", "relu"),
            f"LinearAttention.normalize divides by a sum that feature_map elu or relu keeps from being negative, and"
            f" {self.feature_map} doesn't: choose one of them, or unset it and set output_norm",
        )
        require(
            self.position is None or isinstance(self.position, Rope),
            f"LinearAttention has no scores that {type(self.position).__name__} could be added to: use Rope or none",
        )

    def check(self, width: int) -> None:
        """Refuses what can't be in a model of width C."""
        head_width = self.resolved_head_width(width)
        if isinstance(self.position, Rope):
            self.position.check(head_width)


@dataclass(frozen=True)
class Delta(_State, AttentionConfig):
    """Gated DeltaNet: a state that forgets at large by α and, by β, what it had stored under the same key (Yang, Kautz
    and Hatamizadeh 2024, arXiv:2412.06464); with `decay` None DeltaNet (Yang et al. 2024, arXiv:2406.06484).

    `key_heads` None: H; else H / `key_heads` neighbouring heads share a query and a key (Qwen3-Next). `head_width`
    None: C / H. `value_width` None: `head_width`. `decay`: what is left of the state at the next token, "gated" by it
    or "fixed" for each head (RetNet). `negative` takes β from (0, 2) instead of (0, 1), so that the state can also
    change its sign (Grazzi et al. 2024, arXiv:2411.12537). `convolution` is the taps of a short causal convolution on
    query, key and value. `output_norm` is on each head's output; then `gate`, a function of the input, multiplies it.
    `bias` names the projections that have one.
    """

    heads: int
    key_heads: int | None = None
    head_width: int | None = None
    value_width: int | None = None
    decay: Decay | None = "gated"
    negative: bool = False
    bias: tuple[Projection, ...] = ()
    convolution: int | None = 4
    output_norm: NormConfig | None = RmsNorm()
    gate: Literal["silu", "sigmoid"] | None = "silu"

    def __post_init__(self) -> None:
        self.check_fields()
        require(
            self.resolved_key_heads > 0 and self.heads % self.resolved_key_heads == 0,
            f"attention.key_heads must divide attention.heads ({self.heads}), and {self.key_heads} does not",
        )

    @property
    def resolved_key_heads(self) -> int:
        """How many queries and keys a token has."""
        return self.heads if self.key_heads is None else self.key_heads

    def check(self, width: int) -> None:
        """Refuses what can't be in a model of width C."""
        self.resolved_head_width(width)


@dataclass(frozen=True)
class Average(AttentionConfig):
    """The mean of all values so far, of E = `value_width` elements: what is left of attention without queries and keys
    (Zhang et al. 2018, arXiv:1805.00631).
    """

    value_width: int

    def __post_init__(self) -> None:
        require_positive(self.value_width, "attention.value_width")
