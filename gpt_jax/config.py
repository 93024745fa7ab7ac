"""Every knob there is. Frozen dataclasses, the only home of defaults; `conversion` turns them into ConfigDicts and
back.

`None` means off, or "derived" where the field says from what. A `Variant` field holds one of several small
dataclasses: choosing a variant is choosing a type, and a type has only its own settings. Combinations that can't work
are refused at construction. Widths and lengths count elements, rates are per step, probabilities lie in [0, 1).
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gpt_jax.conversion import ConfigError, Variant, convert, from_dict, join, nearest, to_dict

Dtype = Literal["float32", "bfloat16", "float16"]
Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu"]


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless `condition`."""
    if not condition:
        raise ConfigError(message)


def _require_probability(value: int | float, name: str) -> None:
    require(0 <= value < 1, f"{name} must lie in [0, 1), not {value}")


def _require_positive(value: int | float | None, name: str) -> None:
    """None, which is off or derived, is as good."""
    require(value is None or value > 0, f"{name} must be positive, not {value}")


def _require_taps(taps: int | None, name: str) -> None:
    require(taps is None or taps >= 2, f"{name} must have at least 2 taps, not {taps}: this step and one before it")


# ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────────


class NormConfig(Variant):
    """Normalization of each position's vector."""


@dataclass(frozen=True)
class LayerNorm(NormConfig):
    """Mean 0, variance 1, then an affine map (Ba et al. 2016, arXiv:1607.06450)."""

    eps: float = 1e-5
    scale: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        _require_positive(self.eps, "norm.eps")


@dataclass(frozen=True)
class RmsNorm(NormConfig):
    """Root mean square 1, then a scale (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    eps: float = 1e-6
    scale: bool = True

    def __post_init__(self) -> None:
        _require_positive(self.eps, "norm.eps")


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
        _require_positive(self.theta, "Rope.theta")


@dataclass(frozen=True)
class Alibi(PositionConfig):
    """A penalty proportional to the distance, one slope a head (Press et al. 2021, arXiv:2108.12409)."""


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
        _require_positive(self.size, "Window.size")


@dataclass(frozen=True)
class Score:
    """From queries and keys to logits: `scale` (None: 1/√D), a norm on each head's query and key, tanh soft-capping."""

    scale: float | None = None
    qk_norm: NormConfig | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        _require_positive(self.softcap, "score.softcap")


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
        _require_taps(self.convolution, "attention.convolution")
        _require_positive(self.heads, "attention.heads")
        _require_positive(self.head_width, "attention.head_width")
        kv_heads = self.resolved_kv_heads
        require(
            kv_heads > 0 and self.heads % kv_heads == 0,
            f"attention.kv_heads must divide attention.heads ({self.heads}), and {kv_heads} does not",
        )
        _require_probability(self.dropout, "attention.dropout")

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


class MlpConfig(Variant):
    """The sublayer that works on each position by itself."""


@dataclass(frozen=True)
class Mlp(MlpConfig):
    """down(activation(up(x))) through F = `width` hidden units."""

    width: int
    activation: Activation = "gelu_tanh"
    bias: bool = False

    def __post_init__(self) -> None:
        _require_positive(self.width, "mlp.width")


@dataclass(frozen=True)
class GatedMlp(MlpConfig):
    """down(activation(gate(x)) · up(x)): SwiGLU with silu, GeGLU with gelu (Shazeer 2020, arXiv:2002.05202)."""

    width: int
    activation: Activation = "silu"
    bias: bool = False

    def __post_init__(self) -> None:
        _require_positive(self.width, "mlp.width")


@dataclass(frozen=True)
class BlockConfig:
    """One layer. `mlp=None` is an attention-only layer. `dropout` is on what each sublayer adds to the residual stream.

    Residual arrangements: "pre" x + f(norm(x)), "post" norm(x + f(x)), "sandwich" x + norm(f(norm(x))),
    "parallel" x + attention(norm(x)) + mlp(norm(x)) with one norm. `convolution` is the taps of a short causal
    convolution on the input of each sublayer, after its norm.
    """

    attention: AttentionConfig
    mlp: MlpConfig | None
    norm: NormConfig = RmsNorm()
    residual: Literal["pre", "post", "sandwich", "parallel"] = "pre"
    dropout: float = 0.0
    convolution: int | None = None

    def __post_init__(self) -> None:
        _require_taps(self.convolution, "convolution")
        require(
            self.residual != "parallel" or self.mlp is not None,
            'residual="parallel" needs an mlp beside the attention: give one, or use residual="pre"',
        )
        _require_probability(self.dropout, "dropout")


class AbsolutePositionConfig(Variant):
    """A code of each position that is added to its token's embedding."""


@dataclass(frozen=True)
class Learned(AbsolutePositionConfig):
    """A table of `length` rows (None: context_length), the one position scheme that is a hard limit on the input's
    length.
    """

    length: int | None = None

    def __post_init__(self) -> None:
        _require_positive(self.length, "embedding.position.length")


@dataclass(frozen=True)
class Sinusoidal(AbsolutePositionConfig):
    """Fixed sines and cosines (Vaswani et al. 2017, arXiv:1706.03762)."""

    theta: float = 10_000.0

    def __post_init__(self) -> None:
        _require_positive(self.theta, "embedding.position.theta")


@dataclass(frozen=True)
class Embedding:
    """Tokens to vectors. `norm` follows the sum of token and position."""

    position: AbsolutePositionConfig | None = None
    norm: NormConfig | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _require_probability(self.dropout, "embedding.dropout")


@dataclass(frozen=True)
class Head:
    """Vectors to logits. `tied` uses the token embedding's table; `softcap` c gives c·tanh(logits / c)."""

    tied: bool = True
    bias: bool = False
    softcap: float | None = None

    def __post_init__(self) -> None:
        _require_positive(self.softcap, "head.softcap")


@dataclass(frozen=True)
class Init:
    """Initial values: normal with these standard deviations; `kernel_std` None is 1/√(fan in).

    `output` says what becomes of the kernels that write to the residual stream: "depth" divides them by √(2L) (GPT-2),
    "zero" starts every block as the identity, "same" treats them like the others. `head_std` is an
    untied head's; 0.0 starts with uniform predictions.
    """

    embedding_std: float = 0.02
    kernel_std: float | None = 0.02
    head_std: float = 0.02
    output: Literal["depth", "same", "zero"] = "depth"

    def __post_init__(self) -> None:
        for name in ("embedding_std", "kernel_std", "head_std"):
            std = getattr(self, name)
            require(std is None or std >= 0, f"init.{name} must be 0 or more, not {std}")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder: V tokens in, blocks over width C, V logits out.

    `vocab_size` None is filled from the tokenizer by a training run. `context_length` sizes training rows and caches.
    `dtype` is what the arithmetic runs in, `param_dtype` what parameters are stored in. `scan` and `remat` choose how
    the blocks are executed and change no number: one compiled block instead of L, and what the backward pass
    recomputes.
    """

    vocab_size: int | None
    context_length: int
    width: int
    blocks: tuple[BlockConfig, ...]
    embedding: Embedding = Embedding()
    final_norm: NormConfig | None = RmsNorm()
    head: Head = Head()
    init: Init = Init()
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    scan: bool = False
    remat: Literal["full", "dots"] | None = None

    def __post_init__(self) -> None:
        _require_positive(self.vocab_size, "model.vocab_size")
        _require_positive(self.context_length, "model.context_length")
        _require_positive(self.width, "model.width")
        require(len(self.blocks) > 0, "model.layers must be at least 1")
        for block in self.blocks:
            if isinstance(block.attention, Attention):
                head_width = block.attention.resolved_head_width(self.width)
                if isinstance(rope := block.attention.position, Rope):
                    require(
                        rope_width(rope, head_width) > 0,
                        f"Rope rotates pairs, and a fraction {rope.fraction} of head width {head_width} holds none",
                    )
        require(
            not isinstance(self.embedding.position, Sinusoidal) or self.width % 2 == 0,
            f"a sinusoidal code needs an even model.width, not {self.width}",
        )
        positions = learned_positions(self)
        require(
            positions is None or positions >= self.context_length,
            f"model.embedding.position.length ({positions}) is less than model.context_length ({self.context_length}),"
            " so no row would fit: make it at least as long",
        )

    @property
    def layers(self) -> int:
        """L."""
        return len(self.blocks)

    # A stack is written compactly: the settings of a block stand in the model's own group and hold for every layer;
    # `letters` holds what a letter of `pattern` has otherwise. The pattern repeats until there are `layers`.

    def to_compact_dict(self) -> dict[str, Any]:
        """The nested form with `layers`, `pattern`, the first block's settings, and what other letters change in
        `letters`.
        """
        kinds = list(dict.fromkeys(self.blocks))
        require(len(kinds) <= 26, f"a stack may have 26 kinds of block at most, and this one has {len(kinds)}")
        spelled = "".join(chr(ord("A") + kinds.index(block)) for block in self.blocks)
        period = next(p for p in range(1, len(spelled) + 1) if (spelled[:p] * len(spelled))[: len(spelled)] == spelled)
        base = to_dict(kinds[0])
        letters = {chr(ord("A") + i): _overlay_between(base, to_dict(kind)) for i, kind in enumerate(kinds) if i > 0}
        rest = {
            f.name: to_dict(getattr(self, f.name))
            for f in dataclasses.fields(self)
            if f.name not in ("blocks", "final_norm")
        }
        rest["final_norm"] = {"type": "none"} if self.final_norm is None else to_dict(self.final_norm)
        return {"layers": self.layers, "pattern": spelled[:period], **base, "letters": letters, **rest}

    @classmethod
    def from_compact_dict(cls, values: Mapping[str, Any], path: str) -> ModelConfig:
        """Inverse of `to_compact_dict`."""
        hints = cls.compact_hints()
        for key in values:
            require(key in hints, f'unknown setting "{join(path, key)}"{nearest(key, hints)}')
        for key in ("layers", "pattern", "vocab_size", "context_length", "width"):
            require(key in values, f'{path or "ModelConfig"} needs the setting "{join(path, key)}"')
        at = {key: join(path, key) for key in hints}
        layers, spelled = convert(values["layers"], int, at["layers"]), convert(values["pattern"], str, at["pattern"])
        require(layers > 0 and spelled != "", f"{at['layers']} and the length of {at['pattern']} must be at least 1")
        letters = values["letters"] if "letters" in values else {}
        require(isinstance(letters, Mapping), f"{at['letters']} must be a group of settings, not {letters!r}")
        for letter, changes in letters.items():
            require(
                letter in spelled, f'{at["letters"]} has "{letter}", which {at["pattern"]} "{spelled}" does not use'
            )
            require(
                isinstance(changes, Mapping), f"{at['letters']}.{letter} must be a group of settings, not {changes!r}"
            )
        block_names = [f.name for f in dataclasses.fields(BlockConfig)]
        base = {key: values[key] for key in block_names if key in values}
        blocks = {
            letter: from_dict(BlockConfig, _overlay(base, letters[letter]) if letter in letters else base, path)
            for letter in dict.fromkeys(spelled)
        }
        own = [f.name for f in dataclasses.fields(cls) if f.name != "blocks"]
        rest = {key: convert(values[key], hints[key], at[key]) for key in own if key in values}
        return cls(blocks=tuple(blocks[spelled[i % len(spelled)]] for i in range(layers)), **rest)

    @classmethod
    def compact_hints(cls) -> dict[str, Any]:
        """Types of the compact form's settings."""
        own = {key: hint for key, hint in typing.get_type_hints(cls).items() if key != "blocks"}
        return {"layers": int, "pattern": str, "letters": dict} | typing.get_type_hints(BlockConfig) | own


def pattern(letters: str, **blocks: BlockConfig) -> tuple[BlockConfig, ...]:
    """Spells a stack of layers: `pattern("LLG" * 4, L=local, G=global_)`.

    Raises:
      ConfigError: a letter that no keyword defines.
    """
    for letter in letters:
        require(letter in blocks, f'pattern "{letters}" uses "{letter}", which is not defined{nearest(letter, blocks)}')
    return tuple(blocks[letter] for letter in letters)


def rope_width(rope: Rope, head_width: int) -> int:
    """The number of elements of a head that are rotated, an even number."""
    return 2 * math.floor(rope.fraction * head_width / 2)


def learned_positions(model: ModelConfig) -> int | None:
    """Rows of a learned table of positions: the one hard limit on an input's length; None where there is no such
    table.
    """
    if not isinstance(model.embedding.position, Learned):
        return None
    return model.context_length if model.embedding.position.length is None else model.embedding.position.length


def check_length(model: ModelConfig, length: int) -> None:
    """Raises ValueError where `length` tokens exceed a learned table of positions."""
    limit = learned_positions(model)
    if limit is not None and length > limit:
        raise ValueError(
            f"{length} tokens don't fit the learned table of {limit} positions: "
            "shorten the input or use another position scheme"
        )


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class TokenizerConfig(Variant):
    """Text to ids."""


@dataclass(frozen=True)
class Bytes(TokenizerConfig):
    """UTF-8 bytes 0–255, then `<|endoftext|>`."""


@dataclass(frozen=True)
class Characters(TokenizerConfig):
    """The distinct characters of the whole corpus, held-out part included, sorted by code point, with no special
    token.
    """


@dataclass(frozen=True)
class Bpe(TokenizerConfig):
    """Byte-level byte-pair encoding trained on the training text, `<|endoftext|>` included in `vocab_size`."""

    vocab_size: int
    split: Literal["gpt2", "gpt4"] = "gpt4"


@dataclass(frozen=True)
class TokenizerFile(TokenizerConfig):
    """A saved tokenizer: a folder of ours, a Hugging Face `tokenizer.json`, or a tiktoken rank file."""

    path: str


class DataConfig(Variant):
    """Where sequences come from. `seed` None derives from the run's seed; it alone decides the order of the data."""

    seed: int | None


@dataclass(frozen=True)
class Text(DataConfig):
    """Documents, tokenized once and packed into rows.

    `corpus`: "python" (the standard library's sources), "tiny_shakespeare", or the name of a data set that TFDS has
    prepared. `path`: a file, folder or glob of text to read in place of the named `corpus`; `separator` divides its
    files into documents. Several documents are split by a hash of their path, one document at a position;
    `validation_fraction` of them are held out, unless a prepared data set brings its own validation split.
    `validation_tokens` caps the validation set to its first so many predicted tokens (None: all).
    """

    corpus: str = "python"
    path: str | None = None
    separator: str | None = None
    validation_fraction: float = 0.1
    validation_tokens: int | None = None
    tokenizer: TokenizerConfig = Bytes()
    seed: int | None = None

    def __post_init__(self) -> None:
        require(
            0 < self.validation_fraction < 1,
            f"data.validation_fraction must lie in (0, 1), not {self.validation_fraction}",
        )
        _require_positive(self.validation_tokens, "data.validation_tokens")
        require(
            self.separator is None or (self.path is not None and self.separator != ""),
            "data.separator divides the files of data.path into documents: give a path, "
            "and a separator that is not empty",
        )


def _require_task(symbols: int, length: int, validation_rows: int) -> None:
    for name, value in (("symbols", symbols), ("length", length), ("validation_rows", validation_rows)):
        require(value > 0, f"data.{name} must be positive, not {value}")


@dataclass(frozen=True)
class Copy(DataConfig):
    """Repeat `length` random symbols after a separator."""

    symbols: int = 32
    length: int = 16
    validation_rows: int = 256
    seed: int | None = None

    def __post_init__(self) -> None:
        _require_task(self.symbols, self.length, self.validation_rows)


@dataclass(frozen=True)
class Induction(DataConfig):
    """A random sequence, its symbols all different, repeated with a period drawn anew for each row: predict what
    followed last time (Olsson et al. 2022, arXiv:2209.11895).
    """

    symbols: int = 32
    length: int = 48
    shortest_period: int = 4
    longest_period: int = 24
    validation_rows: int = 256
    seed: int | None = None

    def __post_init__(self) -> None:
        _require_task(self.symbols, self.length, self.validation_rows)
        require(
            0 < self.shortest_period <= self.longest_period < self.length,
            f"data.shortest_period ({self.shortest_period}) ≤ data.longest_period ({self.longest_period}) "
            f"< data.length ({self.length}) must hold, for a row to show its period once and ask for it",
        )
        require(
            self.longest_period <= self.symbols,
            f"the symbols of a period differ: "
            f"data.longest_period ({self.longest_period}) may be data.symbols ({self.symbols}) at most",
        )


@dataclass(frozen=True)
class Recall(DataConfig):
    """Multi-query associative recall: key–value pairs, later queried (Zoology, Arora et al. 2023, arXiv:2312.04927)."""

    symbols: int = 64
    pairs: int = 8
    length: int = 64
    validation_rows: int = 256
    seed: int | None = None

    def __post_init__(self) -> None:
        _require_task(self.symbols, self.length, self.validation_rows)
        require(
            0 < self.pairs <= self.symbols // 2,
            f"data.pairs must lie between 1 and half of data.symbols ({self.symbols}), "
            f"whose other half are the values, not {self.pairs}",
        )
        require(
            4 * self.pairs <= self.length,
            f"{self.pairs} pairs and their queries need a data.length of {4 * self.pairs} at least, not {self.length}",
        )


@dataclass(frozen=True)
class Sort(DataConfig):
    """Sort `length` letters of an alphabet of `symbols`, as the LLM Visualization page's model does."""

    symbols: int = 3
    length: int = 6
    validation_rows: int = 256
    seed: int | None = None

    def __post_init__(self) -> None:
        _require_task(self.symbols, self.length, self.validation_rows)


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class ScheduleConfig(Variant):
    """The learning rate's factor over the steps. `steps` None is `train.steps` when the run begins (more where
    warmup and decay need more), and stays what it was then.
    """


@dataclass(frozen=True)
class Constant(ScheduleConfig):
    """1 after `warmup` linear steps."""

    warmup: int = 0


@dataclass(frozen=True)
class WarmupCosine(ScheduleConfig):
    """Linear from 0 over `warmup` steps, then a half cosine down to `final` at `steps`."""

    warmup: int = 0
    final: float = 0.1
    steps: int | None = None


@dataclass(frozen=True)
class LinearDecay(ScheduleConfig):
    """Linear from 0 over `warmup` steps, then linear down to `final` at `steps`."""

    warmup: int = 0
    final: float = 0.0
    steps: int | None = None


@dataclass(frozen=True)
class WarmupStableDecay(ScheduleConfig):
    """Linear over `warmup` steps, then 1, then over the last `decay` steps linear down to `final` (WSD, Hu et al.
    2024, arXiv:2404.06395).
    """

    decay: int
    warmup: int = 0
    final: float = 0.0
    steps: int | None = None


@dataclass(frozen=True)
class InverseSqrt(ScheduleConfig):
    """Linear over `warmup` steps, then √(warmup / step)."""

    warmup: int


class OptimizerConfig(Variant):
    """The update rule. `weight_decay` acts, times the learning rate, on the parameters whose path matches one of
    `decay` (globs: `*` within a name, `**` across).
    """

    learning_rate: float


@dataclass(frozen=True)
class Adamw(OptimizerConfig):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017, arXiv:1711.05101)."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: tuple[str, ...] = ("**/kernel",)


@dataclass(frozen=True)
class Lion(OptimizerConfig):
    """Sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675)."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 1.0
    decay: tuple[str, ...] = ("**/kernel",)


@dataclass(frozen=True)
class Muon(OptimizerConfig):
    """Orthogonalized momentum for the blocks' matrices (Jordan et al. 2024), Adam for everything else at `adam_ratio`
    times the learning rate.
    """

    learning_rate: float = 0.02
    momentum: float = 0.95
    adam_ratio: float = 0.15
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay: tuple[str, ...] = ("**/kernel",)


@dataclass(frozen=True)
class Sgd(OptimizerConfig):
    """Stochastic gradient descent, with Nesterov `momentum` where it is not None."""

    learning_rate: float = 0.1
    momentum: float | None = None
    weight_decay: float = 0.0
    decay: tuple[str, ...] = ("**/kernel",)


@dataclass(frozen=True)
class Adafactor(OptimizerConfig):
    """Adam with factored second moments (Shazeer & Stern 2018, arXiv:1804.04235), without its relative step sizes."""

    learning_rate: float = 1e-2
    decay_rate: float = 0.8
    weight_decay: float = 0.0
    decay: tuple[str, ...] = ("**/kernel",)


@dataclass(frozen=True)
class Train:
    """The loop. `batch_size` counts rows over all devices and processes; `accumulate` cuts it into that many
    micro-batches.

    `clip_norm` bounds the gradient's global norm. `z_loss` weighs the square of log Z (PaLM, arXiv:2204.02311).
    `max_skipped` non-finite updates in a row stop the run. `log_every` thins the training lines of metrics.jsonl.
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    clip_norm: float | None = 1.0
    z_loss: float | None = None
    max_skipped: int = 10
    log_every: int = 1
    parallel: Literal["jit", "pmap"] = "jit"

    def __post_init__(self) -> None:
        _require_positive(self.steps, "train.steps")
        _require_positive(self.batch_size, "train.batch_size")
        _require_positive(self.log_every, "train.log_every")
        _require_positive(self.max_skipped, "train.max_skipped")
        require(
            self.accumulate > 0 and self.batch_size % self.accumulate == 0,
            f"train.accumulate must divide train.batch_size ({self.batch_size}), and {self.accumulate} does not",
        )


@dataclass(frozen=True)
class Evaluation:
    """Every `every` steps, and after the last, the whole validation set is read, `batch_size` rows at a time (which
    changes no number).
    """

    every: int = 500
    batch_size: int = 64

    def __post_init__(self) -> None:
        _require_positive(self.every, "evaluation.every")
        _require_positive(self.batch_size, "evaluation.batch_size")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint every `every` steps and after the last; the newest `keep` and the best by validation loss stay."""

    every: int = 500
    keep: int = 1

    def __post_init__(self) -> None:
        _require_positive(self.every, "checkpoint.every")
        _require_positive(self.keep, "checkpoint.keep")


@dataclass(frozen=True)
class Config:
    """A whole run. `seed` drives everything random. `wandb` names a Weights & Biases project (None: off); `prompt`
    starts the final sample.
    """

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: Train
    schedule: ScheduleConfig = Constant()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    seed: int = 0
    prompt: str = "\n"
    wandb: str | None = None

    @property
    def data_seed(self) -> int:
        """The seed of the data's order: `data.seed`, or the run's."""
        return self.seed if self.data.seed is None else self.data.seed


def _overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`; a group that changes its type is replaced whole."""
    result = dict(base)
    for key, change in changes.items():
        old = base[key] if key in base else None
        same_type = (
            isinstance(old, Mapping)
            and isinstance(change, Mapping)
            and ("type" not in change or ("type" in old and change["type"] == old["type"]))
        )
        result[key] = _overlay(old, change) if same_type else change  # type: ignore[arg-type]
    return result


def _overlay_between(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The least `changes` with `_overlay(base, changes) == other`."""
    changes = {}
    for key, item in other.items():
        if item == base[key]:
            continue
        nested = isinstance(item, Mapping) and isinstance(base[key], Mapping)
        same_type = nested and ("type" not in item or item["type"] == base[key]["type"])
        changes[key] = _overlay_between(base[key], item) if same_type else item
    return changes
