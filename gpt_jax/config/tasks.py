"""Synthetic tasks beyond the basic ones of `config/data.py`: recall made harder, a needle in a haystack, and states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt_jax.config.checks import require, require_positive
from gpt_jax.config.data import DataConfig, HeldOut


@dataclass(frozen=True)
class HardRecall(DataConfig):
    """`Recall` with noise, repetition and updates, after the variants of Zoology (Arora et al. 2023, arXiv:2312.04927).

    The pairs stand `passes` times, in another order each time (stacked; see Arora et al. 2024, arXiv:2407.05483). Then
    `updates` of the keys get another value, which is the answer from there on (forgetting). `noise` values that belong
    to no key stand between the pairs, at random places (noisy).
    """

    symbols: int = 64
    pairs: int = 8
    length: int = 64
    passes: int = 1
    updates: int = 0
    noise: int = 0
    validation_rows: int = 256
    held_out: HeldOut = "validation"
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("symbols", "pairs", "length", "passes", "validation_rows"):
            require_positive(getattr(self, name), f"data.{name}")
        require(
            0 < self.pairs <= self.symbols // 2,
            f"data.pairs must be at least 1 and at most half of data.symbols ({self.symbols}), not {self.pairs}",
        )
        require(
            0 <= self.updates <= self.pairs and self.pairs + self.updates <= (self.symbols + 1) // 2,
            f"data.updates must lie between 0 and data.pairs ({self.pairs}), and the values of both must be different "
            f"ones of {(self.symbols + 1) // 2}, not {self.updates}",
        )
        require(self.noise >= 0, f"data.noise must not be negative, but is {self.noise}")
        need = self.context + 2 * self.pairs
        require(
            self.length >= need,
            f"data.length must be at least {need} for these pairs, noise and queries, not {self.length}",
        )

    @property
    def context(self) -> int:
        """The number of positions before those of the queries."""
        return 2 * (self.passes * self.pairs + self.updates) + self.noise


@dataclass(frozen=True)
class Needle(DataConfig):
    """Needles in a haystack: a marker, a key and its value stand `needles` times among random symbols, at multiples of
    three places; at the end a marker and a key ask for its value, once for each needle (after RULER: Hsieh et al. 2024,
    arXiv:2404.06654).
    """

    symbols: int = 64
    needles: int = 4
    length: int = 64
    validation_rows: int = 256
    held_out: HeldOut = "validation"
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("symbols", "needles", "length", "validation_rows"):
            require_positive(getattr(self, name), f"data.{name}")
        require(
            self.needles <= self.symbols // 2,
            f"data.needles must be at most half of data.symbols ({self.symbols}), because keys differ, not "
            f"{self.needles}",
        )
        need = 6 * self.needles - 1
        require(
            self.length >= need,
            f"data.length must be at least {need} for {self.needles} needles and their questions, not {self.length}",
        )


@dataclass(frozen=True)
class Track(DataConfig):
    """State tracking: the product of all group elements so far, at each position. "parity": the sum of bits modulo 2;
    "s5": the composition of permutations of five things, which no fixed number of parallel layers computes for every
    length (Merrill et al. 2024, arXiv:2404.08819).
    """

    group: Literal["parity", "s5"] = "parity"
    length: int = 32
    validation_rows: int = 256
    held_out: HeldOut = "validation"
    seed: int | None = None

    def __post_init__(self) -> None:
        require_positive(self.length, "data.length")
        require_positive(self.validation_rows, "data.validation_rows")
