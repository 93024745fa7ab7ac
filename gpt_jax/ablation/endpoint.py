"""Endpoints: the one number of a run, or of an arm's runs with one seed, that decides a study's verdict.

A study declares its endpoint before its first run. Everything else that is measured is secondary, and the report says
so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from gpt_jax.config.checks import require
from gpt_jax.config.variant import Variant

BITS_PER_BYTE = "bits per byte"  # the unit of the final loss where tokenizers or contexts differ


class Endpoint(Variant):
    """What decides the verdict.

    `words` names it in a sentence, `unit` is what `smallest_difference` is measured in, and `lower_is_better` says
    which sign of a difference is a gain.
    """

    lower_is_better: ClassVar[bool] = True

    @property
    def words(self) -> str:
        """Its name in a sentence."""
        raise NotImplementedError

    @property
    def unit(self) -> str:
        """Its unit, which is that of the smallest difference that matters."""
        return "nats per token"


@dataclass(frozen=True)
class FinalLoss(Endpoint):
    """The validation loss after the last step."""

    @property
    def words(self) -> str:
        return "final validation loss"


@dataclass(frozen=True)
class LongLoss(Endpoint):
    """The validation loss on rows of `factor` times the training context. The study's `extrapolation` must measure
    them.
    """

    factor: int = 2

    def __post_init__(self) -> None:
        require(self.factor >= 1, f"the endpoint's factor of the context must be at least 1, not {self.factor}")

    @property
    def words(self) -> str:
        return f"validation loss at {self.factor} × the training context"


@dataclass(frozen=True)
class PositionLoss(Endpoint):
    """The validation loss at the positions from `first` on, up to but not including `stop` (None: the end of the
    context), counted from 0.
    """

    first: int
    stop: int | None = None

    def __post_init__(self) -> None:
        require(
            0 <= self.first and (self.stop is None or self.first < self.stop),
            f"the endpoint's positions must be a range from 0 on, not {self.first} to {self.stop}",
        )

    @property
    def words(self) -> str:
        return f"validation loss at positions {self.first} to {'the end' if self.stop is None else self.stop - 1}"


@dataclass(frozen=True)
class ProbeAccuracy(Endpoint):
    """The accuracy of the study's probe at `x`; None is the mean over all of its x."""

    x: int | None = None
    lower_is_better: ClassVar[bool] = False

    @property
    def words(self) -> str:
        return "mean accuracy of the probe" if self.x is None else f"accuracy of the probe at {self.x}"

    @property
    def unit(self) -> str:
        return "share of the answers"


@dataclass(frozen=True)
class RateSensitivity(Endpoint):
    """Sensitivity to the learning rate: mean over the study's `learning_rates` of min(loss, initial loss) − best loss,
    for each seed (Wortsman et al. 2023, arXiv:2309.14322). A diverged run has the initial loss.
    """

    @property
    def words(self) -> str:
        return "sensitivity to the learning rate"


@dataclass(frozen=True)
class ToTarget(Endpoint):
    """The cost of the training that reaches a validation loss of `loss`, by interpolation between evaluations: FLOPs,
    or seconds, which only runs that had the machine to themselves may compare. A run that never reaches it failed.
    """

    loss: float
    cost: Literal["flops", "seconds"] = "flops"

    @property
    def words(self) -> str:
        return f"{'FLOPs' if self.cost == 'flops' else 'seconds'} to a validation loss of {self.loss:g}"

    @property
    def unit(self) -> str:
        return "FLOPs" if self.cost == "flops" else "seconds"


@dataclass(frozen=True)
class FailureRate(Endpoint):
    """The share of seeds that failed: diverged, or ended above the study's `fails_above`."""

    @property
    def words(self) -> str:
        return "failure rate"

    @property
    def unit(self) -> str:
        return "share of the seeds"


# ── secondary ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Suite:
    """Questions with known answers that every run of a study is asked after its training, the same in all arms and
    seeds. The accuracy is a secondary endpoint, one for each kind of question at each length.

    `name` is a suite of `experiments.evaluate` that fits the data of the runs. `kinds` are some of its kinds (empty:
    all that it has), `lengths` are in tokens (empty: that of the training rows). `questions` counts the rows or
    questions of each kind and length. `smallest_difference` is the smallest difference of accuracies that matters.

    Raises:
      ConfigError: a number that makes no sense.
    """

    name: str
    kinds: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    questions: int = 256
    smallest_difference: float = 0.05

    def __post_init__(self) -> None:
        what = f'the suite "{self.name}" of the secondary endpoints'
        require(all(length >= 1 for length in self.lengths), f"{what} has lengths below 1 token: {self.lengths}")
        require(self.questions >= 2, f"{what} needs 2 questions or more, not {self.questions}")
        matters = 0 < self.smallest_difference < 1
        require(
            matters, f"{what} has accuracies between 0 and 1: {self.smallest_difference:g} is no difference of them"
        )
