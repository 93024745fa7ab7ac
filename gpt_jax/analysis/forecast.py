"""What a program needs and takes on chips that are not attached: plain records, for JSON and for a page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Communication:
    """One kind of collective in one execution: the bytes that a chip sends, those of them in groups of chips that span
    hosts, and the number of operations.
    """

    kind: str
    sent: float
    between_hosts: float
    operations: int


@dataclass(frozen=True)
class Buffer:
    """An array that is alive when the program needs most memory: bytes a chip, type and shape, where the program made
    it, the line of gpt_jax that did, and the setting that makes it smaller ("": none is known).
    """

    bytes: int
    array: str
    scope: str
    line: str
    remedy: str


@dataclass(frozen=True)
class Forecast:
    """An estimate of one program on a slice of TPU chips; nothing in it is measured.

    Attributes:
      target: "train": one step; "decode": one token for each row, with a full cache.
      topology: as libtpu names it, such as "v5e:4x4"; `chip`, `chips` and `hosts` are what that is.
      mesh: axis → size.
      fits: whether the program fits into the memory of a chip.
      memory: what → bytes a chip; `usable` is what a program may take of a chip's memory.
      buffers: the largest arrays at the moment when the program needs most memory.
      seconds: of one execution; None if it does not fit, as all that follows from it.
      cycles: the compiler's cycles in it.
      work: kind of work → seconds.
      kernels: kernel without cycles, counted by its roofline → seconds.
      flops: the model's operations in one execution, on all chips; recomputation is not counted.
      roofline: the least seconds that the chips allow: operations at their peak ("train"), or parameters and cache read
        once ("decode").
      tokens: of one execution, on all chips.
      total_tokens: of the whole run; `hours` and `cost` are for these.
      communication: by kind of collective.
      compile_seconds: of the compiler, on this machine.
      notes: sentences that a reader of the numbers must know.
    """

    target: str
    topology: str
    chip: str
    chips: int
    hosts: int
    mesh: dict[str, int]
    fits: bool
    memory: dict[str, int]
    usable: int
    buffers: Sequence[Buffer]
    seconds: float | None
    cycles: float | None
    work: dict[str, float]
    kernels: dict[str, float]
    flops: float
    roofline: float
    tokens: int
    total_tokens: int | None
    price: float | None
    communication: Sequence[Communication]
    compile_seconds: float
    notes: Sequence[str]

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second of all chips together."""
        return None if self.seconds is None else self.tokens / self.seconds

    @property
    def share(self) -> float | None:
        """The roofline's seconds as a share of the estimate's: of the peak, for training."""
        return None if self.seconds is None else self.roofline / self.seconds

    @property
    def hours(self) -> float | None:
        """Hours for all tokens of the run, without evaluation, checkpoints and interruptions."""
        if self.seconds is None or self.total_tokens is None:
            return None
        return self.total_tokens / self.tokens * self.seconds / 3600

    @property
    def cost(self) -> float | None:
        """The price of these hours on all chips."""
        return None if self.hours is None or self.price is None else self.hours * self.chips * self.price


DERIVED = ("tokens_per_second", "share", "hours", "cost")


def to_json(forecasts: Sequence[Forecast], **more: Any) -> str:
    """Forecasts as strict JSON, with what follows from their fields."""
    records = [dataclasses.asdict(f) | {name: getattr(f, name) for name in DERIVED} for f in forecasts]
    return json.dumps({"forecasts": records, **more}, indent=2, allow_nan=False)
