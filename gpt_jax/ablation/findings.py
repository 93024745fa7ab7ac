"""The records of `results.json`: what a study has found, whole or half-way. A field's name here is its name in the
file.

Losses are nats per token unless the study's unit says otherwise. A field that is None was not measured, or does not
apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpt_jax.ablation.schema import (
    AccuracyBy,
    ArmPlan,
    AttentionDiagnostics,
    Budget,
    Grouping,
    Interval,
    Number,
    Origin,
    Points,
    Rules,
    Setup,
)


@dataclass(frozen=True, kw_only=True)
class Failures:
    """How many of an arm's seeds failed, with the exact 95% interval of its rate (Clopper & Pearson 1934), and p of the
    exact test that it fails as often as the baseline.
    """

    failed: int = 0
    n: int = 0
    interval: Interval | None = None
    p: float | None = None


@dataclass(frozen=True, kw_only=True)
class Versus:
    """One thing − another on the endpoint, by pairs of one seed. None where there is no such number: a difference with
    failed seeds on either side has none.

    `interval` decides: it holds in 95% of studies for all arms at once and at every look. `t_interval` is Student's 95%
    interval for this difference alone, `population_interval` that for text like this one. `robust` is the median of
    pairwise means with its exact interval, which holds in a share `robust_level` of cases (Hodges & Lehmann 1963). `p`
    is corrected over arms and looks, `t_p` is not. `correlation` is that of the pairs. `outliers` are seeds.
    """

    mean: Number | None = None
    std: Number | None = None
    n: int | None = None
    interval: Interval | None = None
    t_interval: Interval | None = None
    population_interval: Interval | None = None
    robust: Number | None = None
    robust_interval: Interval | None = None
    robust_level: float | None = None
    t_p: float | None = None
    p: float | None = None
    correlation: float | None = None
    outliers: tuple[str, ...] = ()
    failures: Failures | None = None
    verdict: str | None = None
    reason: str | None = None
    seeds_to_decide: int | None = None


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A difference beside those from the baseline: of two other arms, or the interaction of a product's two changes,
    (both − first) − (second − neither).
    """

    name: str
    kind: str
    versus: Versus


@dataclass(frozen=True, kw_only=True)
class Event:
    """A line of the study's log: a start, a look at the results, or a change of the claim."""

    time: str
    what: str
    text: str
    runs_done: int = 0


@dataclass(frozen=True)
class RunRecord:
    """A run of an arm. Its status is one of `statuses.STATUSES`."""

    seed: int | None = None
    learning_rate: float | int | None = None
    folder: str | None = None
    status: str | None = None
    config_hash: str | None = None
    wall_seconds: Number | None = None


@dataclass(frozen=True)
class Curves:
    """Losses over the updates."""

    train: Points | None = None
    validation: Points | None = None


@dataclass(frozen=True)
class Diagnostics(AttentionDiagnostics):
    """Means over the seeds of what `Measurements` has, and of the training's gradient norms and skipped updates."""

    gradient_norm: float | None = None
    skipped_steps: Number | None = None


@dataclass(frozen=True, kw_only=True)
class ArmResults(ArmPlan):
    """An arm of `results.json`. `suites` has what runs that are asked suites while they train record over the updates:
    accuracies, levels of chance and losses.

    `values` are those of the endpoint and `losses` the final validation losses, by seed,
    None where the seed failed; `mean`, `std` and `interval` are of the values, None where a seed failed. `values` lacks
    seeds that make no pair with the baseline's. `losses`, `curves` and what is measured are of the runs at
    `learning_rate`; curves and means over the seeds are left out where a seed failed. `by_learning_rate` has the losses
    of a sweep in the order of the seeds. `inside` has the scores of attention heads after the last step, by score and
    seed, of runs that record them.
    """

    measured_decode_tokens_per_second: float | None = None
    measured_training_tokens_per_second: float | None = None
    measured_peak_bytes: Number | None = None
    learning_rate: Number | None = None
    learning_rate_sensitivity: float | None = None
    mean: float | None = None
    std: float | None = None
    n: int | None = None
    interval: Interval | None = None
    versus_baseline: Versus | None = None
    failures: Failures | None = None
    values: Mapping[str, float | None] = field(default_factory=dict)
    losses: Mapping[str, float | None] = field(default_factory=dict)
    by_learning_rate: Mapping[str, tuple[float | None, ...]] | None = None
    curves: Curves | None = None
    suites: Mapping[str, Points] = field(default_factory=dict)
    loss_by_position: Points | None = None
    extrapolation: Points | None = None
    accuracy_by: AccuracyBy | None = None
    diagnostics: Diagnostics | None = None
    inside: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    runs: tuple[RunRecord, ...] = ()


@dataclass(frozen=True)
class Noise:
    """Values of the endpoint of `n` fresh seeds of the baseline; mean and std are None where one failed."""

    mean: float | None = None
    std: float | None = None
    n: int = 0


@dataclass(frozen=True)
class Copies:
    """The determinism check (A/A): whether the repeated runs of the baseline are bit-equal to the first ones, and how
    many pairs were compared.
    """

    equal: bool | None = None
    pairs: int = 0


@dataclass(frozen=True, kw_only=True)
class Repeat(Origin):
    """What it takes to make the study again, and what went wrong."""

    together: Grouping | None = None
    configs: Mapping[str, Any] | None = None
    failures: tuple[str, ...] = ()
    wall_seconds: Number | None = None


@dataclass(frozen=True, kw_only=True)
class StudyResults(Rules):
    """`results.json`: the results of a study, whole or half-way, for its report. `marks` are what the headline must
    say: a claim that was changed after results were seen, arms off the budget that were ranked, rates not tuned, a
    tiny size. `devices` names each kind of device that runs used, `jobs` how many processes shared a machine.
    """

    question: str
    smallest_difference: float | int | None = None  # type: ignore[assignment]
    baseline: str
    seeds: tuple[int, ...] | None = None
    budget: Budget | None = None
    setup: Setup = Setup()
    devices: tuple[str, ...] = ()
    jobs: int = 1
    is_smoke: bool = False
    is_forced: bool = False
    marks: tuple[str, ...] = ()
    log: tuple[Event, ...] = ()
    verdict: str | None = None
    noise: Noise | None = None
    aa: Copies | None = None
    arms: tuple[ArmResults, ...]
    contrasts: tuple[Contrast, ...] = ()
    repeat: Repeat = Repeat()
