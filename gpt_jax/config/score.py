"""From queries and keys to weights: masks, temperatures and the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt_jax.config.checks import require, require_positive
from gpt_jax.config.norm import NormConfig
from gpt_jax.config.variant import Variant


class MaskConfig(Variant):
    """Which positions a query may see. Documents never see each other, whatever the mask."""


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
    """Causal, except that the first tokens of a row, the model's argument `prefix` says how many, all see one another
    (prefix-LM: Raffel et al. 2020, arXiv:1910.10683). In training the prefix ends before the first target that counts;
    in decoding it is the prompt.
    """


class TemperatureConfig(Variant):
    """A factor on each query that depends on its position."""


@dataclass(frozen=True)
class LogTemperature(TemperatureConfig):
    """1 + `strength` · log(1 + ⌊position / `length`⌋): sharper where more keys compete (Llama 4)."""

    strength: float = 0.1
    length: int = 8192

    def __post_init__(self) -> None:
        require_positive(self.length, "LogTemperature.length")


@dataclass(frozen=True)
class Ssmax(TemperatureConfig):
    """s · log n, where the query sees n keys; s is learned for each head and starts at `initial` (scalable softmax:
    Nakanishi 2025, arXiv:2501.19399).
    """

    initial: float = 0.43


@dataclass(frozen=True)
class Score:
    """From queries and keys to weights.

    `scale` multiplies q·k, None: 1/√D. `softcap` c turns a score x into c·tanh(x / c). `qk_norm` normalizes queries and
    keys: `qk_norm_over` each "head", with one scale for all (Qwen 3), each of the "heads" with a scale of its own
    (Cohere), or the whole "width" H·D at once (OLMo 2); `qk_norm_last` after the rotation instead of before it.

    `normalizer` turns logits into weights: "softmax"; "softmax_plus_one", with e⁰ added to the denominator (Miller
    2023); "sinks", with a learned logit for each head added there (gpt-oss, arXiv:2508.10925); "sigmoid" of
    logit − log(context_length), each weight independent of the others (Ramapuram et al. 2024, arXiv:2409.04431).
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
            "score.qk_norm_over and score.qk_norm_last say how score.qk_norm acts: set it, or leave both alone",
        )
