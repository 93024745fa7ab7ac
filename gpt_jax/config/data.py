"""Data sets and tokenizers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt_jax.config.checks import require, require_positive
from gpt_jax.config.variant import Variant

HeldOut = Literal["validation", "tuning"]


class TokenizerConfig(Variant):
    """How text becomes token ids."""


@dataclass(frozen=True)
class Bytes(TokenizerConfig):
    """The UTF-8 bytes 0–255, and `<|endoftext|>` as 256."""


@dataclass(frozen=True)
class Characters(TokenizerConfig):
    """The distinct characters of the whole corpus, including its held-out part, sorted by code point. There is no
    special token.
    """


@dataclass(frozen=True)
class Bpe(TokenizerConfig):
    """Byte-level byte-pair encoding, trained on the training text. `vocab_size` includes `<|endoftext|>`."""

    vocab_size: int
    split: Literal["gpt2", "gpt4"] = "gpt4"


@dataclass(frozen=True)
class TokenizerFile(TokenizerConfig):
    """A saved tokenizer: a folder written by gpt_jax, a Hugging Face `tokenizer.json`, or a tiktoken rank file."""

    path: str


class DataConfig(Variant):
    """The data set. Only `seed` decides the order of the data; None: the seed of the run.

    `held_out` chooses what a run is evaluated on: the validation set, or a tuning set taken from the training side, so
    that settings can be chosen without looking at the validation set.
    """

    held_out: HeldOut
    seed: int | None


@dataclass(frozen=True)
class Text(DataConfig):
    """Text documents, tokenized once and packed into rows.

    `corpus`: "python" (the sources of the standard library), "tiny_shakespeare", or the name of a data set that TFDS
    has prepared. `path`: a file, folder or glob of text files that replaces `corpus`; `separator` splits each file into
    documents. `validation_fraction` of the documents, chosen by a hash of their paths, is held out; a single document
    is split at a position, and a prepared data set with a validation split of its own keeps it. `validation_tokens`
    limits the validation set to its first so many predicted tokens (None: all).

    With `held_out="tuning"` the validation documents are left out, and `validation_fraction` of the training documents
    (chosen by a second hash), or the last `validation_fraction` of the training part of a single document, is evaluated
    on instead of trained on. The tokenizer is that of `held_out="validation"`.
    """

    corpus: str = "python"
    path: str | None = None
    separator: str | None = None
    validation_fraction: float = 0.1
    validation_tokens: int | None = None
    held_out: HeldOut = "validation"
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
            "data.separator splits the files of data.path into documents: set data.path, and a separator that is not "
            "empty",
        )


def _require_task(symbols: int, length: int, validation_rows: int) -> None:
    for name, value in (("symbols", symbols), ("length", length), ("validation_rows", validation_rows)):
        require(value > 0, f"data.{name} must be positive, not {value}")


@dataclass(frozen=True)
class Copy(DataConfig):
    """Copy a sequence: repeat `length` random symbols after a separator."""

    symbols: int = 32
    length: int = 16
    validation_rows: int = 256
    held_out: HeldOut = "validation"
    seed: int | None = None

    def __post_init__(self) -> None:
        _require_task(self.symbols, self.length, self.validation_rows)


@dataclass(frozen=True)
class Induction(DataConfig):
    """Induction: each row repeats a random sequence of distinct symbols, with a period drawn for the row; predict the
    symbol that followed last time (Olsson et al. 2022, arXiv:2209.11895).
    """

    symbols: int = 32
    length: int = 48
    shortest_period: int = 4
    longest_period: int = 24
    validation_rows: int = 256
    held_out: HeldOut = "validation"
    seed: int | None = None

    def __post_init__(self) -> None:
        _require_task(self.symbols, self.length, self.validation_rows)
        require(
            0 < self.shortest_period <= self.longest_period < self.length,
            f"data.shortest_period ({self.shortest_period}) ≤ data.longest_period ({self.longest_period}) "
            f"< data.length ({self.length}) must hold, so that each row repeats some of its period",
        )
        require(
            self.longest_period <= self.symbols,
            f"data.longest_period ({self.longest_period}) must be at most data.symbols ({self.symbols}), because the "
            "symbols of a period are distinct",
        )


@dataclass(frozen=True)
class Recall(DataConfig):
    """Multi-query associative recall: key–value pairs, then queries for them (Zoology: Arora et al. 2023,
    arXiv:2312.04927).
    """

    symbols: int = 64
    pairs: int = 8
    length: int = 64
    validation_rows: int = 256
    held_out: HeldOut = "validation"
    seed: int | None = None

    def __post_init__(self) -> None:
        _require_task(self.symbols, self.length, self.validation_rows)
        require(
            0 < self.pairs <= self.symbols // 2,
            f"data.pairs must be at least 1 and at most half of data.symbols ({self.symbols}), because one half of the "
            f"symbols are keys and the other values, not {self.pairs}",
        )
        require(
            4 * self.pairs <= self.length,
            f"data.length must be at least {4 * self.pairs} for {self.pairs} pairs and queries, not {self.length}",
        )


@dataclass(frozen=True)
class Sort(DataConfig):
    """Sort `length` letters of an alphabet of `symbols`, the task of the LLM Visualization page (Bycroft 2023)."""

    symbols: int = 3
    length: int = 6
    validation_rows: int = 256
    held_out: HeldOut = "validation"
    seed: int | None = None

    def __post_init__(self) -> None:
        _require_task(self.symbols, self.length, self.validation_rows)
