"""Schedules, optimizers and the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt_jax.config.checks import require, require_positive, require_probability
from gpt_jax.config.faults import SpikesConfig
from gpt_jax.config.variant import Variant


class ScheduleConfig(Variant):
    """The factor on the learning rate as a function of the step.

    `steps` None is `train.steps` when the run starts, or more if warmup and decay take longer; it does not change when
    the run is continued with more steps. A longer run may take another schedule that agrees with the old one on the
    steps up to a checkpoint (`runs/longer.py`).
    """


@dataclass(frozen=True)
class Constant(ScheduleConfig):
    """Linear from 0 to 1 over `warmup` steps, then 1."""

    warmup: int = 0


@dataclass(frozen=True)
class WarmupCosine(ScheduleConfig):
    """Linear from 0 to 1 over `warmup` steps, then half a cosine down to `final` at `steps`."""

    warmup: int = 0
    final: float = 0.1
    steps: int | None = None


@dataclass(frozen=True)
class LinearDecay(ScheduleConfig):
    """Linear from 0 to 1 over `warmup` steps, then linear down to `final` at `steps`."""

    warmup: int = 0
    final: float = 0.0
    steps: int | None = None


@dataclass(frozen=True)
class WarmupStableDecay(ScheduleConfig):
    """Linear from 0 to 1 over `warmup` steps, then 1, then linear down to `final` over the last `decay` steps (WSD: Hu
    et al. 2024, arXiv:2404.06395).
    """

    decay: int
    warmup: int = 0
    final: float = 0.0
    steps: int | None = None


@dataclass(frozen=True)
class InverseSqrt(ScheduleConfig):
    """Linear from 0 to 1 over `warmup` steps, then √(warmup / step)."""

    warmup: int


class AverageConfig(Variant):
    """An average of the weights after each step, which is evaluated, saved and loaded in place of the last weights.
    Training itself goes on from the last ones.
    """


@dataclass(frozen=True)
class Ema(AverageConfig):
    """Weights of age n count in proportion to `decay`ⁿ; those before the first step do not count (Morales-Brotons et
    al. 2024, arXiv:2411.18704).
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        require(0 < self.decay < 1, f"train.average.decay must lie in (0, 1), not {self.decay}")


@dataclass(frozen=True)
class TailAverage(AverageConfig):
    """The mean of the weights of all steps after the first `start` · `steps` (SWA: Izmailov et al. 2018,
    arXiv:1803.05407; LAWA: Kaddour 2022, arXiv:2209.14981). Before them it is the last weights.

    `steps` None is `train.steps` when the run starts; it does not change when the run is continued with more steps.
    """

    start: float = 0.8
    steps: int | None = None

    def __post_init__(self) -> None:
        require_probability(self.start, "train.average.start")
        require_positive(self.steps, "train.average.steps")


class OptimizerConfig(Variant):
    """The update rule. At each step, parameters whose path matches one of the globs `decay` (`*` stops at "/", `**`
    crosses it) shrink by `weight_decay` times the learning rate.
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
    """Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675)."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 1.0
    decay: tuple[str, ...] = ("**/kernel",)


@dataclass(frozen=True)
class Muon(OptimizerConfig):
    """Muon: orthogonalized momentum for the matrices of the blocks (Jordan et al. 2024), and Adam for all other
    parameters at `adam_ratio` times the learning rate.
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
    """Stochastic gradient descent, with Nesterov momentum unless `momentum` is None."""

    learning_rate: float = 0.1
    momentum: float | None = None
    weight_decay: float = 0.0
    decay: tuple[str, ...] = ("**/kernel",)


@dataclass(frozen=True)
class Adafactor(OptimizerConfig):
    """Factored second moments (Shazeer & Stern 2018, arXiv:1804.04235), without the paper's relative step sizes."""

    learning_rate: float = 1e-2
    decay_rate: float = 0.8
    weight_decay: float = 0.0
    decay: tuple[str, ...] = ("**/kernel",)


@dataclass(frozen=True)
class Train:
    """The training loop.

    `batch_size` counts rows over all devices and processes; `accumulate` splits each batch into that many
    micro-batches. `clip_norm` bounds the global norm of the gradient (None: off). `z_loss` is the weight of (log Z)² in
    the loss (PaLM, arXiv:2204.02311). `max_skipped` consecutive updates that are not finite stop the run. `log_every`
    is the number of steps between training lines of metrics.jsonl. `parallel` chooses how data parallelism is
    expressed. `average` averages the weights over steps (None: the run's model has the last weights). `spikes` looks
    for spikes of the loss (None: off).
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    clip_norm: float | None = 1.0
    z_loss: float | None = None
    max_skipped: int = 10
    log_every: int = 1
    parallel: Literal["jit", "pmap"] = "jit"
    average: AverageConfig | None = None
    spikes: SpikesConfig | None = None

    def __post_init__(self) -> None:
        require_positive(self.steps, "train.steps")
        require_positive(self.batch_size, "train.batch_size")
        require_positive(self.log_every, "train.log_every")
        require_positive(self.max_skipped, "train.max_skipped")
        require(
            self.accumulate > 0 and self.batch_size % self.accumulate == 0,
            f"train.accumulate must divide train.batch_size ({self.batch_size}), which {self.accumulate} does not",
        )


@dataclass(frozen=True)
class Evaluation:
    """Evaluation on the whole validation set, every `every` steps and after the last one. `batch_size`, the rows of one
    batch, does not change the results.
    """

    every: int = 500
    batch_size: int = 64

    def __post_init__(self) -> None:
        require_positive(self.every, "evaluation.every")
        require_positive(self.batch_size, "evaluation.batch_size")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint every `every` steps and after the last one. The newest `keep` and that of lowest validation loss
    remain, and under WarmupStableDecay the newest one before the decay, from which a longer run goes on.
    """

    every: int = 500
    keep: int = 1

    def __post_init__(self) -> None:
        require_positive(self.every, "checkpoint.every")
        require_positive(self.keep, "checkpoint.keep")


@dataclass(frozen=True)
class Diagnostics:
    """Scores of every attention head, every `every` steps and after the last one (None: never), on the first `rows`
    rows of the validation set and on as many of random tokens that repeat, cut to `tokens` tokens. They change no
    number of the training.
    """

    every: int | None = None
    rows: int = 4
    tokens: int = 128

    def __post_init__(self) -> None:
        require_positive(self.every, "diagnostics.every")
        require_positive(self.rows, "diagnostics.rows")
        require(self.tokens >= 4, f"diagnostics.tokens must be at least 4, two that repeat, not {self.tokens}")


@dataclass(frozen=True)
class Suites:
    """Questions with known answers, every `every` steps and after the last one: those of the suites `names`, separated
    by commas (None: no questions). Each kind has the same `questions` questions at every step, which are as long as the
    rows of the training. They change no number of the training.
    """

    names: str | None = None
    every: int = 500
    questions: int = 32

    def __post_init__(self) -> None:
        require_positive(self.every, "suites.every")
        require(self.questions >= 2, f"suites.questions must be at least 2, not {self.questions}")
