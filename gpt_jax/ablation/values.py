"""The value of a study's endpoint for one seed of one arm, and the validation rows that it is a mean of, from what the
folders of its runs hold.

A value is None while it is not known, and NaN where the seed failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_jax.ablation.endpoint import (
    Endpoint,
    FailureRate,
    FinalLoss,
    LongLoss,
    PositionLoss,
    ProbeAccuracy,
    RateSensitivity,
    ToTarget,
)
from gpt_jax.ablation.rows import RowSums, mean_of, row_sums
from gpt_jax.ablation.schema import ArmPlan, StudyRecord
from gpt_jax.ablation.statistics import learning_rate_sensitivity
from gpt_jax.ablation.study_runs import StudyRun
from gpt_jax.config.conversion import convert
from gpt_jax.config.variant import implementation


@dataclass(frozen=True)
class SeedRuns:
    """An arm's runs with one seed: `own` at the arm's learning rate, and those at every rate of the study."""

    arm: ArmPlan
    own: StudyRun
    at_rates: Sequence[StudyRun]


def endpoint_of(study: StudyRecord) -> Endpoint:
    """The study's endpoint; studies from before endpoints had the final loss.

    Raises:
      ConfigError: the record holds no known endpoint.
    """
    found: Endpoint = FinalLoss() if study.endpoint is None else convert(study.endpoint, Endpoint, "endpoint")
    return found


def value(endpoint: Endpoint, seed: SeedRuns) -> float | None:
    """The endpoint of one seed.

    Raises:
      ConfigError: the endpoint has no entry in `MEASURED`.
    """
    return implementation(MEASURED, endpoint).value(endpoint, seed)


def rows(endpoint: Endpoint, seed: SeedRuns) -> RowSums | None:
    """Sums and weights of the validation rows whose ratio is the seed's value, (R,) each; None where the runs keep no
    such rows, or the endpoint is no mean over rows.
    """
    return implementation(MEASURED, endpoint).rows(endpoint, seed)


# ── one run's number ─────────────────────────────────────────────────────────────────────────────────────────────────

Value = Callable[[Any, SeedRuns], float | None]


def _unless_failed(of: Value) -> Value:
    """`of` for a run that has ended well, NaN for one that failed."""

    def found(endpoint: Any, seed: SeedRuns) -> float | None:
        if not seed.own.is_done:
            return None
        return math.nan if seed.own.has_failed else of(endpoint, seed)

    return found


def _final_loss(endpoint: FinalLoss, seed: SeedRuns) -> float | None:
    return seed.own.loss


def _long_loss(endpoint: LongLoss, seed: SeedRuns) -> float | None:
    measured = seed.own.measured
    points: dict[Any, Any] = {} if measured is None else dict(measured.extrapolation)  # type: ignore[arg-type]
    return points.get(endpoint.factor)


def _position_loss(endpoint: PositionLoss, seed: SeedRuns) -> float | None:
    found = row_sums(seed.own.folder, endpoint)
    return None if found is None else mean_of(found)


def _accuracy(endpoint: ProbeAccuracy, seed: SeedRuns) -> float | None:
    found = None if seed.own.measured is None else seed.own.measured.accuracy_by
    points: dict[Any, Any] = {} if found is None else dict(found.points)  # type: ignore[arg-type]
    if endpoint.x is None:
        return float(np.mean(list(points.values()))) if points else None
    return points.get(endpoint.x)


def _failure(endpoint: FailureRate, seed: SeedRuns) -> float | None:
    return float(seed.own.has_failed) if seed.own.is_done else None


# ── the cost of a loss ───────────────────────────────────────────────────────────────────────────────────────────────


def _to_target(endpoint: ToTarget, seed: SeedRuns) -> float | None:
    """NaN where no evaluation reaches the target. The loss before the first update begins the interpolation."""
    run = seed.own
    cost = _flops_to(run, seed.arm) if endpoint.cost == "flops" else _seconds_to(run)
    if cost is None:
        return None
    start = run.train[0]["loss"] if run.train else None
    before = None if start is None else (0, start)
    for step, loss in ((r["step"], r["loss"]) for r in run.validation):
        if loss is not None and loss <= endpoint.loss:
            if before is None:
                return cost(step)
            share = (before[1] - endpoint.loss) / (before[1] - loss) if before[1] > endpoint.loss else 0.0
            return cost(before[0] + share * (step - before[0]))
        before = None if loss is None else (step, loss)
    return math.nan


def _flops_to(run: StudyRun, arm: ArmPlan) -> Callable[[float], float] | None:
    """FLOPs of the training up to a step; None in a study that did not record the tokens of a run."""
    if arm.tokens is None or arm.flops_per_token is None:
        return None
    by_step = arm.flops_per_token * arm.tokens / run.planned.steps
    return lambda step: by_step * step


def _seconds_to(run: StudyRun) -> Callable[[float], float] | None:
    """Seconds of the training up to a step, without evaluations, from the speeds of the steps that recorded one; None
    where none did. A step between two of them took what interpolation gives.
    """
    known = [(r["step"], r["tokens"] / r["tokens_per_second"]) for r in run.train if r["tokens_per_second"]]
    if not known:
        return None
    steps = np.arange(run.planned.steps + 1)
    clock = np.concatenate([[0.0], np.cumsum(np.interp(steps[1:], *np.transpose(known)))])
    return lambda step: float(np.interp(step, steps, clock))


# ── all learning rates ───────────────────────────────────────────────────────────────────────────────────────────────


def _sensitivity(endpoint: RateSensitivity, seed: SeedRuns) -> float | None:
    return sensitivity(seed)


def sensitivity(seed: SeedRuns) -> float | None:
    """Mean over the rates of min(loss, initial loss) − best loss, a run that failed having the initial loss. NaN where
    none ended below it; None for one rate, or before all have ended.
    """
    runs, initial = seed.at_rates, _initial(seed)
    if not all(run.is_done for run in runs):
        return None
    if all(run.has_failed for run in runs):
        return math.nan
    if initial is None:
        return None
    losses = {run.planned.learning_rate: [run.loss] for run in runs}
    return learning_rate_sensitivity(losses, initial) if _learned(runs, initial) else math.nan


def _learned(runs: Sequence[StudyRun], initial: float) -> list[StudyRun]:
    """Those that ended below the initial loss."""
    return [run for run in runs if run.loss is not None and run.loss < initial]


def _initial(seed: SeedRuns) -> float | None:
    """The loss before training, which all rates share."""
    return next((run.initial_loss for run in seed.at_rates if run.initial_loss is not None), None)


def _sensitivity_rows(endpoint: RateSensitivity, seed: SeedRuns) -> RowSums | None:
    """The rows of min(loss, initial loss), which are constant where the initial loss is the smaller, averaged over the
    rates, less the rows of the best rate.
    """
    initial = _initial(seed)
    learned = [] if initial is None else _learned(seed.at_rates, initial)
    kept = [_scaled(run) for run in learned]
    if initial is None or not learned or any(found is None for found in kept):
        return None
    known = [found for found in kept if found is not None]
    best, weights = min(zip(learned, known, strict=True), key=lambda pair: pair[0].loss or 0.0)[1]
    constant = (len(seed.at_rates) - len(learned)) * initial * weights.astype(np.float64)
    return (sum(sums for sums, _ in known) + constant) / len(seed.at_rates) - best, weights


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _own_rows(endpoint: Endpoint, seed: SeedRuns) -> RowSums | None:
    return row_sums(seed.own.folder, endpoint)


def _loss_rows(endpoint: FinalLoss, seed: SeedRuns) -> RowSums | None:
    return _scaled(seed.own)


def _scaled(run: StudyRun) -> RowSums | None:
    """The rows of the final loss in its unit."""
    found = row_sums(run.folder, FinalLoss())
    return None if found is None else (found[0] * np.float64(run.scale), found[1])


def _no_rows(endpoint: Endpoint, seed: SeedRuns) -> None:
    return None


@dataclass(frozen=True)
class Measured:
    """How an endpoint is read from the folders of a seed's runs."""

    value: Value
    rows: Callable[[Any, SeedRuns], RowSums | None]


MEASURED: Mapping[type, Measured] = {
    FinalLoss: Measured(_unless_failed(_final_loss), _loss_rows),
    LongLoss: Measured(_unless_failed(_long_loss), _own_rows),
    PositionLoss: Measured(_unless_failed(_position_loss), _own_rows),
    ProbeAccuracy: Measured(_unless_failed(_accuracy), _own_rows),
    RateSensitivity: Measured(_sensitivity, _sensitivity_rows),
    ToTarget: Measured(_unless_failed(_to_target), _no_rows),
    FailureRate: Measured(_failure, _no_rows),
}
