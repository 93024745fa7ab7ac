"""The sublayer that mixes positions: masks, scores, and softmax attention in its kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt_jax.config.checks import require, require_positive, require_probability, require_taps
from gpt_jax.config.norm import NormConfig, RmsNorm
from gpt_jax.config.position import PositionConfig, Rope
from gpt_jax.config.variant import Variant

Projection = Literal["query", "key", "value", "output"]
PROJECTIONS: tuple[Projection, ...] = ("query", "key", "value", "output")


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
class Chunk(MaskConfig):
    """The earlier positions of the query's own chunk; a document's chunks are `size` positions each (Llama 4)."""

    size: int

    def __post_init__(self) -> None:
        require_positive(self.size, "Chunk.size")


@dataclass(frozen=True)
class Prefix(MaskConfig):
    """Causal, but the first tokens of a row, as many as the model's argument `prefix` says, see one another whole
    (prefix-LM: Raffel et al. 2020, arXiv:1910.10683). In training they are what stands before the first target that
    counts, in decoding the prompt.
    """


class TemperatureConfig(Variant):
    """A factor on each query that depends on its position."""


@dataclass(frozen=True)
class LogTemperature(TemperatureConfig):
    """1 + `strength` · log(1 + ⌊position / `length`⌋): sharper where there is more to choose from (Llama 4)."""

    strength: float = 0.1
    length: int = 8192

    def __post_init__(self) -> None:
        require_positive(self.length, "LogTemperature.length")


@dataclass(frozen=True)
class Ssmax(TemperatureConfig):
    """s · log n with n keys in sight and a learned s for each head, at first `initial` (scalable softmax, Nakanishi
    2025, arXiv:2501.19399).
    """

    initial: float = 0.43


@dataclass(frozen=True)
class Score:
    """From queries and keys to weights: `scale` (None: 1/√D), a norm on queries and keys, tanh soft-capping, and what
    makes weights of logits.

    `qk_norm_over`: each "head" with one scale for all (Qwen 3), all "heads" each with its own (Cohere), or the whole
    "width" H·D at once (OLMo 2). `qk_norm_last`: after the rotation, not before. `normalizer`: "softmax";
    "softmax_plus_one", whose denominator has one more e⁰ (Miller 2023); "sinks", the same with a learned logit for each
    head (gpt-oss, arXiv:2508.10925); "sigmoid", each weight by itself, less log(context_length) (Ramapuram et al. 2024,
    arXiv:2409.04431).
    """

    scale: float | None = None
    qk_norm: NormConfig | None = None
    qk_norm_over: Literal["head", "heads", "width"] = "head"
    qk_norm_last: bool = False
    softcap: float | None = None
    temperature: TemperatureConfig | None = None
    normalizer: Literal["softmax", "softmax_plus_one", "sinks", "sigmoid"] = "softmax"

    def __post_init__(self) -> None:
        require_positive(self.softcap, "score.softcap")
        require(
            self.qk_norm is not None or (self.qk_norm_over == "head" and not self.qk_norm_last),
            "score.qk_norm_over and score.qk_norm_last say how score.qk_norm acts: choose one, or leave them alone",
        )


class AttentionConfig(Variant):
    """The sublayer that mixes positions."""

    def check(self, width: int) -> None:
        """Refuses what can't be in a model of width C."""


class Heads:
    """What kinds of attention with H heads have in common: a key's width and a value's, given or derived."""

    heads: int
    head_width: int | None
    value_width: int | None

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

    def resolved_value_width(self, width: int) -> int:
        """E, the width of a value, in a model of width C."""
        return self.resolved_head_width(width) if self.value_width is None else self.value_width


@dataclass(frozen=True)
class Attention(Heads, AttentionConfig):
    """Softmax attention with H query heads that share K key/value heads: MHA (K = H), GQA, MQA (K = 1).

    `kv_heads` None: H. `head_width` None: C / H. `value_width` None: `head_width`. `bias` names the projections that
    have one. `clip` bounds the elements of queries, keys and values (MPT, OLMo). `dropout` is on the probabilities.
    `convolution` is the taps of a short causal convolution on query, key and value.

    `gate`: a sigmoid of the input on each head's output, elementwise or one a head (Qiu et al. 2025, arXiv:2505.06708).
    `forget_gate`: scores fade by what lies between, as the data decides (FoX: Lin et al. 2025, arXiv:2503.02130).
    `value_residual`: the share of the first such layer's values in this one's, at first; learned, one a layer (Zhou et
    al. 2024, arXiv:2410.17897). `value_embedding`: a vector of the token itself is added to its values.
    `value_from_key`: the value is the key before its norm and rotation, and only one of them is cached. `shared_kv`:
    keys and values are those of the nearest layer below that has its own (CLA: Brandon et al. 2024, arXiv:2405.12981).
    """

    heads: int
    kv_heads: int | None = None
    head_width: int | None = None
    mask: MaskConfig = Causal()
    position: PositionConfig | None = None
    score: Score = Score()
    bias: tuple[Projection, ...] = ()
    clip: float | None = None
    dropout: float = 0.0
    convolution: int | None = None
    value_width: int | None = None
    gate: Literal["elementwise", "headwise"] | None = None
    forget_gate: bool = False
    value_residual: float | None = None
    value_embedding: bool = False
    value_from_key: bool = False
    shared_kv: bool = False

    def __post_init__(self) -> None:
        require_taps(self.convolution, "attention.convolution")
        for name in ("heads", "head_width", "value_width", "clip"):
            require_positive(getattr(self, name), f"attention.{name}")
        kv_heads = self.resolved_kv_heads
        require(
            kv_heads > 0 and self.heads % kv_heads == 0,
            f"attention.kv_heads must divide attention.heads ({self.heads}), and {kv_heads} does not",
        )
        require(len(set(self.bias)) == len(self.bias), f"attention.bias names a projection twice: {self.bias}")
        require_probability(self.dropout, "attention.dropout")
        _refuse(
            self,
            "shared_kv",
            "makes no keys and values of its own",
            ["convolution", "clip", "forget_gate", "value_residual", "value_embedding", "value_from_key"],
            ["key", "value"],
        )
        _refuse(
            self,
            "value_from_key",
            "makes no values of its own",
            ["value_width", "value_residual", "value_embedding"],
            ["value"],
        )

    @property
    def resolved_kv_heads(self) -> int:
        """K."""
        return self.heads if self.kv_heads is None else self.kv_heads

    def check(self, width: int) -> None:
        """Refuses what can't be in a model of width C."""
        head_width = self.resolved_head_width(width)
        if isinstance(self.position, Rope):
            self.position.check(head_width)


def _refuse(
    attention: Attention, field: str, why: str, switches: list[str], projections: list[Literal["key", "value"]]
) -> None:
    """With `field` on, `switches` must be off and `projections` have no bias."""
    if not getattr(attention, field):
        return
    for name in switches:
        value = getattr(attention, name)
        require(value is None or value is False, f"attention.{field} {why}, so attention.{name} can't act: unset one")
    for name in projections:
        require(name not in attention.bias, f"attention.{field} {why}, so attention.bias can't name the {name}")


@dataclass(frozen=True)
class Differential(Attention):
    """The difference of two attention maps: head h less λ times head h + H/2, over the values of both, λ learned, one a
    layer (Ye et al. 2024, arXiv:2410.05258). `norm` is on each difference.
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

    Each head has `head_width` elements beside the rotary ones. `query_rank` None makes queries directly.
    `value_width` None: `head_width`. `norm` is on the latents. `bias` is where DeepSeek has it: on the products that
    make latents and the rotated key of x, and on the output's; never on the queries'.
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
            f"Latent has a part of queries and keys for Rope, and no place for {type(self.position).__name__}: use Rope"
            " or none",
        )
        if isinstance(self.position, Rope):
            self.position.check(self.rotary_width)
        require(
            self.score.qk_norm is None,
            "Latent has norms on its latents (attention.norm), and none on queries and keys: unset score.qk_norm",
        )

    @property
    def resolved_value_width(self) -> int:
        """E."""
        return self.head_width if self.value_width is None else self.value_width
