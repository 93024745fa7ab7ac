"""The sublayer that mixes positions: masks, scores, and the kinds of attention."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_jax.config.checks import require, require_positive, require_probability, require_taps
from gpt_jax.config.norm import NormConfig
from gpt_jax.config.position import PositionConfig
from gpt_jax.conversion import Variant


class MaskConfig(Variant):
    """Which earlier positions a query may see; documents never see each other whatever the mask."""


@dataclass(frozen=True)
class Causal(MaskConfig):
    """Every earlier position and the query's own."""


@dataclass(frozen=True)
class Window(MaskConfig):
    """The last `size` positions, the query's own included."""

    size: int

    def __post_init__(self) -> None:
        require_positive(self.size, "Window.size")


@dataclass(frozen=True)
class Score:
    """From queries and keys to logits: `scale` (None: 1/√D), a norm on each head's query and key, tanh soft-capping."""

    scale: float | None = None
    qk_norm: NormConfig | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        require_positive(self.softcap, "score.softcap")


class AttentionConfig(Variant):
    """The sublayer that mixes positions."""


@dataclass(frozen=True)
class Attention(AttentionConfig):
    """Softmax attention with H query heads that share K key/value heads: MHA (K = H), GQA, MQA (K = 1).

    `kv_heads` None: H. `head_width` None: C / H. `bias` is on query, key and value. `dropout` is on the probabilities.
    `convolution` is the taps of a short causal convolution on query, key and value.
    """

    heads: int
    kv_heads: int | None = None
    head_width: int | None = None
    mask: MaskConfig = Causal()
    position: PositionConfig | None = None
    score: Score = Score()
    bias: bool = False
    output_bias: bool = False
    dropout: float = 0.0
    convolution: int | None = None

    def __post_init__(self) -> None:
        require_taps(self.convolution, "attention.convolution")
        require_positive(self.heads, "attention.heads")
        require_positive(self.head_width, "attention.head_width")
        kv_heads = self.resolved_kv_heads
        require(
            kv_heads > 0 and self.heads % kv_heads == 0,
            f"attention.kv_heads must divide attention.heads ({self.heads}), and {kv_heads} does not",
        )
        require_probability(self.dropout, "attention.dropout")

    @property
    def resolved_kv_heads(self) -> int:
        """K."""
        return self.heads if self.kv_heads is None else self.kv_heads

    def resolved_head_width(self, width: int) -> int:
        """D in a model of width C."""
        if self.head_width is not None:
            return self.head_width
        require(
            width % self.heads == 0,
            f"model.width ({width}) is no multiple of attention.heads ({self.heads}):"
            f" choose one that is, or set attention.head_width",
        )
        return width // self.heads
