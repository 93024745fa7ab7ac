"""The sublayer that mixes positions: softmax attention in its kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gpt_jax.config.checks import require, require_positive, require_probability, require_taps
from gpt_jax.config.norm import NormConfig, RmsNorm
from gpt_jax.config.position import PositionConfig, Rope
from gpt_jax.config.score import Causal, MaskConfig, Score
from gpt_jax.config.values import GateConfig, Projected, Projection, ValueConfig
from gpt_jax.config.variant import Variant


class AttentionConfig(Variant):
    """The sublayer that mixes positions."""

    def check(self, width: int) -> None:
        """Refuses what a model of width C cannot have."""


class Heads:
    """What the kinds of attention with H heads have in common: the width of a key."""

    heads: int
    head_width: int | None

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


@dataclass(frozen=True)
class Attention(Heads, AttentionConfig):
    """Softmax attention with H query heads that share K key/value heads: MHA (K = H), GQA, MQA (K = 1).

    `kv_heads` None: H. `head_width` None: C / H. `value` says where keys and values come from. `bias` names the
    projections that have one. `clip` bounds the elements of the projected queries, keys and values (MPT, OLMo), and
    `convolution` is the number of taps of a short causal convolution on each of them. `dropout` acts on the
    probabilities. `gate` multiplies the heads' outputs. `forget_gate` multiplies each head's weights by the product of
    sigmoid gates f between key and query, one f for each head and token (FoX: Lin et al. 2025, arXiv:2503.02130).
    """

    heads: int
    kv_heads: int | None = None
    head_width: int | None = None
    mask: MaskConfig = Causal()
    position: PositionConfig | None = None
    score: Score = Score()
    value: ValueConfig = Projected()
    bias: tuple[Projection, ...] = ()
    clip: float | None = None
    dropout: float = 0.0
    convolution: int | None = None
    gate: GateConfig | None = None
    forget_gate: bool = False

    # Settings of earlier versions, and where they are now.
    moved: ClassVar[dict[str, str]] = {
        "value_width": "value.width",
        "value_residual": "value.residual",
        "value_embedding": "value.embedding",
        "value_from_key": 'value.type "FromKey"',
        "shared_kv": 'value.type "Shared"',
    }

    def __post_init__(self) -> None:
        require_taps(self.convolution, "attention.convolution")
        for name in ("heads", "head_width", "clip"):
            require_positive(getattr(self, name), f"attention.{name}")
        kv_heads = self.resolved_kv_heads
        require(
            kv_heads > 0 and self.heads % kv_heads == 0,
            f"attention.kv_heads must divide attention.heads ({self.heads}), and {kv_heads} does not",
        )
        require(len(set(self.bias)) == len(self.bias), f"attention.bias names a projection twice: {self.bias}")
        require_probability(self.dropout, "attention.dropout")
        made = ("query", "output", *self.value.made)
        for name in self.bias:
            require(
                name in made,
                f'attention.bias names "{name}", which a layer with attention.value of type'
                f" {type(self.value).__name__} does not project: leave it out of attention.bias",
            )
        require(
            not self.forget_gate or "key" in self.value.made,
            f"attention.forget_gate acts on the keys that a layer projects, and one with attention.value of type"
            f" {type(self.value).__name__} projects none: unset one of the two",
        )

    @property
    def resolved_kv_heads(self) -> int:
        """K."""
        return self.heads if self.kv_heads is None else self.kv_heads

    def resolved_value_width(self, width: int) -> int:
        """E, the width of a value, in a model of width C."""
        return self.value.resolved_width(self.resolved_head_width(width))

    def check(self, width: int) -> None:
        """Refuses what a model of width C cannot have."""
        head_width = self.resolved_head_width(width)
        if isinstance(self.position, Rope):
            self.position.check(head_width)


@dataclass(frozen=True)
class Differential(Attention):
    """The difference of two attention maps: head h minus λ times head h + H/2, over the values of both; λ is learned,
    one for each layer (Ye et al. 2024, arXiv:2410.05258). `norm` is applied to each difference.
    """

    norm: NormConfig | None = RmsNorm(eps=1e-5, scale=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.resolved_kv_heads % 2 == 0,
            f"Differential pairs its heads: give an even attention.kv_heads, not {self.resolved_kv_heads}",
        )


@dataclass(frozen=True)
class Latent(AttentionConfig):
    """Multi-head latent attention: keys and values are made from a vector of width `rank`, which alone is cached, with
    `rotary_width` elements of one key that all heads share and RoPE turns (MLA: DeepSeek-V2 2024, arXiv:2405.04434).

    Each head has `head_width` elements beside the rotary ones. `query_rank` is the width of the vector that queries are
    made from; None: they are projected from x directly. `value_width` None: `head_width`. `norm` is applied to the
    latents. `bias` adds biases where DeepSeek has them: in the projections from x to the latents and to the rotated
    key, and in the output's; never in the queries'.
    """

    heads: int
    rank: int
    head_width: int
    rotary_width: int
    query_rank: int | None = None
    value_width: int | None = None
    mask: MaskConfig = Causal()
    position: PositionConfig | None = Rope()
    score: Score = Score()
    norm: NormConfig | None = RmsNorm()
    bias: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("heads", "rank", "head_width", "rotary_width", "query_rank", "value_width"):
            require_positive(getattr(self, name), f"attention.{name}")
        require_probability(self.dropout, "attention.dropout")
        require(
            self.position is None or isinstance(self.position, Rope),
            f"Latent rotates a part of queries and keys with Rope, and has no use for {type(self.position).__name__}:"
            " use Rope or none",
        )
        if isinstance(self.position, Rope):
            self.position.check(self.rotary_width)
        require(
            self.score.qk_norm is None,
            "Latent normalizes its latents (attention.norm), not queries and keys: unset score.qk_norm",
        )

    @property
    def resolved_value_width(self) -> int:
        """E."""
        return self.head_width if self.value_width is None else self.value_width
