"""Recurrent mixers: instead of a cache that grows with the row, a state of constant size, and no softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt_jax.config.attention import AttentionConfig, Heads
from gpt_jax.config.checks import require, require_positive, require_taps
from gpt_jax.config.norm import NormConfig, RmsNorm
from gpt_jax.config.position import PositionConfig, Rope
from gpt_jax.config.values import Projection

# The factor by which a head's state decays at each token. "fixed": 1 − 2^(−5−h) in head h (RetNet: Sun et al. 2023,
# arXiv:2307.08621). "gated": exp(−a · softplus(w·x + b)), a function of the token x (Mamba-2: Dao & Gu 2024,
# arXiv:2405.21060).
Decay = Literal["fixed", "gated"]


class _State(Heads):
    """Base of the mixers with H heads, each of which has a state (D, E)."""

    value_width: int | None
    bias: tuple[Projection, ...]
    convolution: int | None

    def resolved_value_width(self, width: int) -> int:
        """E, the width of a value, in a model of width C."""
        return self.resolved_head_width(width) if self.value_width is None else self.value_width

    def check_fields(self) -> None:
        """Raises ConfigError for values that are invalid in every subclass."""
        for name in ("heads", "head_width", "value_width"):
            require_positive(getattr(self, name), f"attention.{name}")
        require_taps(self.convolution, "attention.convolution")
        require(len(set(self.bias)) == len(self.bias), f"attention.bias names a projection twice: {self.bias}")


@dataclass(frozen=True)
class LinearAttention(_State, AttentionConfig):
    """Linear attention: Σ (f(q) · f(k)) v over all tokens so far, computed from a state Σ f(k) vᵀ (Katharopoulos et al.
    2020, arXiv:2006.16236).

    `head_width` D; None: C / H. `value_width` E; None: D. `feature_map` f: "elu" is elu + 1; None is the identity.
    `normalize` divides by Σ f(q) · f(k), without rotation if there is RoPE (RoFormer: Su et al. 2021,
    arXiv:2104.09864); otherwise scores are divided by √D. `decay` of the state is "fixed" per head (RetNet) or "gated"
    by the token (as in Mamba-2); None: no decay. `bias` names the projections that have one. `convolution` is the
    number of taps of a short causal convolution on query, key and value. `output_norm` normalizes each head's output
    (RetNet, Lightning Attention), which is then multiplied by `gate`, an activation of a projection of the input.
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
        """Raises ConfigError if a model of width C cannot have this mixer."""
        head_width = self.resolved_head_width(width)
        if isinstance(self.position, Rope):
            self.position.check(head_width)


@dataclass(frozen=True)
class Delta(_State, AttentionConfig):
    """Gated DeltaNet: the whole state decays by α, and the value stored under the current key is overwritten to the
    degree β (Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464). With `decay` None, DeltaNet (Yang et al. 2024,
    arXiv:2406.06484).

    `key_heads` None: H; otherwise H / `key_heads` neighbouring heads share a query and a key (Qwen3-Next). `head_width`
    D; None: C / H. `value_width` E; None: D. `decay` α is "gated" by the token or "fixed" per head (RetNet). `negative`
    takes β from (0, 2) instead of (0, 1), which allows negative eigenvalues of the state's transition (Grazzi et al.
    2024, arXiv:2411.12537). `convolution` is the number of taps of a short causal convolution on query, key and value.
    `output_norm` normalizes each head's output, which is then multiplied by `gate`, an activation of a projection of
    the input. `bias` names the projections that have one.
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
            f"attention.key_heads must divide attention.heads ({self.heads}), which {self.key_heads} does not",
        )

    @property
    def resolved_key_heads(self) -> int:
        """The number of query heads and of key heads, K."""
        return self.heads if self.key_heads is None else self.key_heads

    def check(self, width: int) -> None:
        """Raises ConfigError if a model of width C cannot have this mixer."""
        self.resolved_head_width(width)


@dataclass(frozen=True)
class Average(AttentionConfig):
    """The mean of the values of all tokens so far, of E = `value_width` elements: attention with uniform weights (Zhang
    et al. 2018, arXiv:1805.00631).
    """

    value_width: int

    def __post_init__(self) -> None:
        require_positive(self.value_width, "attention.value_width")
