"""The decoder: blocks, embedding, head, and the compact form in which a stack of blocks is written."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gpt_jax.config.adapter import AdapterConfig
from gpt_jax.config.attention import AttentionConfig
from gpt_jax.config.checks import require, require_positive, require_probability, require_taps
from gpt_jax.config.conversion import convert, from_dict, join, overlay, overlay_between, to_dict
from gpt_jax.config.errors import ConfigError, nearest
from gpt_jax.config.norm import NormConfig, RmsNorm
from gpt_jax.config.position import AbsolutePositionConfig, Learned, Sinusoidal
from gpt_jax.config.sharing import check_shared
from gpt_jax.config.variant import Variant

Dtype = Literal["float32", "bfloat16", "float16"]
Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu", "xielu"]


class MlpConfig(Variant):
    """The sublayer that is applied to each position independently."""


@dataclass(frozen=True)
class Mlp(MlpConfig):
    """down(activation(up(x))) with F = `width` hidden units."""

    width: int
    activation: Activation = "gelu_tanh"
    bias: bool = False

    def __post_init__(self) -> None:
        require_positive(self.width, "mlp.width")


@dataclass(frozen=True)
class GatedMlp(MlpConfig):
    """down(activation(gate(x)) · up(x)): SwiGLU with silu, GeGLU with gelu (Shazeer 2020, arXiv:2002.05202)."""

    width: int
    activation: Activation = "silu"
    bias: bool = False

    def __post_init__(self) -> None:
        require_positive(self.width, "mlp.width")


@dataclass(frozen=True)
class BlockConfig:
    """One layer: attention (or another mixer) and an MLP. `mlp` None: attention only.

    `residual` arranges each sublayer f: "pre" x + f(norm(x)), "post" norm(x + f(x)), "sandwich" x + norm(f(norm(x))),
    "output" x + norm(f(x)), "parallel" x + attention(norm(x)) + mlp(norm(x)) with one norm, "parallel_norms" with two.
    `dropout` and `residual_scale` (a factor, Granite) apply to what each sublayer adds to the residual stream.
    `convolution` is the number of taps of a short causal convolution on the normalized input of each sublayer. If any
    layer has an `adapter`, only adapters are trained.
    """

    attention: AttentionConfig
    mlp: MlpConfig | None
    norm: NormConfig = RmsNorm()
    residual: Literal["pre", "post", "sandwich", "output", "parallel", "parallel_norms"] = "pre"
    dropout: float = 0.0
    convolution: int | None = None
    residual_scale: float | None = None
    adapter: AdapterConfig | None = None

    def __post_init__(self) -> None:
        require_taps(self.convolution, "convolution")
        require(
            not self.residual.startswith("parallel") or self.mlp is not None,
            f'residual="{self.residual}" needs an mlp beside the attention: give one, or use residual="pre"',
        )
        require_probability(self.dropout, "dropout")


@dataclass(frozen=True)
class Embedding:
    """Token ids to vectors. `scale` multiplies the token vectors (Gemma: √C); `norm` is applied to the sum of token and
    position vectors.
    """

    position: AbsolutePositionConfig | None = None
    norm: NormConfig | None = None
    dropout: float = 0.0
    scale: float | None = None

    def __post_init__(self) -> None:
        require_probability(self.dropout, "embedding.dropout")


@dataclass(frozen=True)
class Head:
    """Hidden vectors to logits. `tied` shares the token embedding's table; `scale` multiplies the logits (Cohere,
    Granite); then `softcap` c bounds them to c · tanh(logits / c). `block` is the number of tokens whose logits the
    loss holds at once on a device (None: by size, see `training/blockwise.py`); results differ by rounding only.
    """

    tied: bool = True
    bias: bool = False
    softcap: float | None = None
    scale: float | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        require_positive(self.softcap, "head.softcap")
        require_positive(self.block, "head.block")


@dataclass(frozen=True)
class Init:
    """Initialization: normal with these standard deviations. `kernel_std` None means 1/√(fan-in).

    `output` treats the kernels that write to the residual stream: "depth" divides them by √(2L) (GPT-2), "zero" sets
    them to 0, so that each block starts as the identity, "same" leaves them like all others. `head_std` is for an
    untied head; with 0.0 the initial predictions are uniform.
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
    """A decoder: token ids (B, T) → logits (B, T, V), through L blocks of width C.

    `vocab_size` None is set from the tokenizer by a training run. `context_length` is the length of training rows and
    limits the length of generated text. `dtype` is the type of the arithmetic, `param_dtype` that of stored parameters.
    `scan` compiles one group of layers instead of L layers, and `remat` selects what the backward pass recomputes;
    neither changes a result. `kernel` selects the implementation of softmax attention over whole rows (None: by
    platform and length, see `model/attend.py`); results differ by rounding only.
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
    kernel: Literal["einsum", "chunked", "splash"] | None = None

    def __post_init__(self) -> None:
        require_positive(self.vocab_size, "model.vocab_size")
        require_positive(self.context_length, "model.context_length")
        require_positive(self.width, "model.width")
        require(len(self.blocks) > 0, "model.layers must be at least 1")
        for block in self.blocks:
            block.attention.check(self.width)
        check_shared(self.attentions, self.width)
        require(
            not isinstance(self.embedding.position, Sinusoidal) or self.width % 2 == 0,
            f"embedding.position Sinusoidal needs an even model.width, not {self.width}",
        )
        code = self.embedding.position
        require(
            not (isinstance(code, Sinusoidal) and code.endpoint) or self.width > 2,
            "embedding.position.endpoint needs at least two pairs, and a model.width of 2 has one: unset it",
        )
        positions = learned_positions(self)
        require(
            positions is None or positions >= self.context_length,
            f"model.embedding.position.length ({positions}) must be at least model.context_length"
            f" ({self.context_length})",
        )

    @property
    def layers(self) -> int:
        """L, the number of blocks."""
        return len(self.blocks)

    @property
    def attentions(self) -> list[AttentionConfig]:
        """The attention of each layer."""
        return [block.attention for block in self.blocks]

    # The compact form of a stack: the settings of the first kind of block stand in the group of the model and apply to
    # every layer; `letters` overrides them for single letters of `pattern`, which is repeated up to `layers` letters.

    def to_compact_dict(self) -> dict[str, Any]:
        """Nested dicts with `layers`, `pattern`, the settings of the first block, and in `letters` the settings in
        which the other blocks differ from it.
        """
        kinds = list(dict.fromkeys(self.blocks))
        require(len(kinds) <= 26, f"a stack must have at most 26 different blocks, not {len(kinds)}")
        spelled = "".join(chr(ord("A") + kinds.index(block)) for block in self.blocks)
        period = next(p for p in range(1, len(spelled) + 1) if (spelled[:p] * len(spelled))[: len(spelled)] == spelled)
        base = to_dict(kinds[0])
        letters = {chr(ord("A") + i): overlay_between(base, to_dict(kind)) for i, kind in enumerate(kinds) if i > 0}
        rest = {
            f.name: to_dict(getattr(self, f.name))
            for f in dataclasses.fields(self)
            if f.name not in ("blocks", "final_norm")
        }
        rest["final_norm"] = {"type": "none"} if self.final_norm is None else to_dict(self.final_norm)
        return {"layers": self.layers, "pattern": spelled[:period], **base, "letters": letters, **rest}

    @classmethod
    def from_compact_dict(cls, values: Mapping[str, Any], path: str) -> ModelConfig:
        """Inverse of `to_compact_dict`; `path` is the prefix of the settings' names in messages.

        Raises:
          ConfigError: an unknown or a missing setting, a wrong type, or an invalid combination.
        """
        hints = cls.compact_hints()
        for key in [key for key in values if key not in hints]:
            raise ConfigError(f'unknown setting "{join(path, key)}"{nearest(key, hints)}')
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
            letter: from_dict(BlockConfig, overlay(base, letters[letter]) if letter in letters else base, path)
            for letter in dict.fromkeys(spelled)
        }
        own = [f.name for f in dataclasses.fields(cls) if f.name != "blocks"]
        rest = {key: convert(values[key], hints[key], at[key]) for key in own if key in values}
        return cls(blocks=tuple(blocks[spelled[i % len(spelled)]] for i in range(layers)), **rest)

    @classmethod
    @functools.cache
    def compact_hints(cls) -> dict[str, Any]:
        """Setting → type, in the compact form."""
        own = {key: hint for key, hint in typing.get_type_hints(cls).items() if key != "blocks"}
        return {"layers": int, "pattern": str, "letters": dict} | typing.get_type_hints(BlockConfig) | own


def pattern(letters: str, **blocks: BlockConfig) -> tuple[BlockConfig, ...]:
    """A stack of layers, spelled with one letter per block: `pattern("LLG" * 4, L=local, G=global_)`.

    Raises:
      ConfigError: a letter that no keyword defines.
    """
    for letter in letters:
        if letter not in blocks:
            raise ConfigError(f'pattern "{letters}" uses "{letter}", which is not defined{nearest(letter, blocks)}')
    return tuple(blocks[letter] for letter in letters)


def learned_positions(model: ModelConfig) -> int | None:
    """The number of positions in the learned table, a hard limit on the length of the input; None if there is no such
    table.
    """
    if not isinstance(model.embedding.position, Learned):
        return None
    return model.context_length if model.embedding.position.length is None else model.embedding.position.length
