"""Where sequences come from, and how text becomes ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt_jax.config.checks import require, require_positive
from gpt_jax.config.variant import Variant


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
        require_positive(self.validation_tokens, "data.validation_tokens")
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
