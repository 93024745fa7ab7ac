"""Schedules, optimizers, and the loop around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt_jax.config.checks import require, require_positive
from gpt_jax.config.variant import Variant


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
        require_positive(self.steps, "train.steps")
        require_positive(self.batch_size, "train.batch_size")
        require_positive(self.log_every, "train.log_every")
        require_positive(self.max_skipped, "train.max_skipped")
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
        require_positive(self.every, "evaluation.every")
        require_positive(self.batch_size, "evaluation.batch_size")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint every `every` steps and after the last; the newest `keep` and the best by validation loss stay."""

    every: int = 500
    keep: int = 1

    def __post_init__(self) -> None:
        require_positive(self.every, "checkpoint.every")
        require_positive(self.keep, "checkpoint.keep")
