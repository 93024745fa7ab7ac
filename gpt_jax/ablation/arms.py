"""The results of one arm, from its runs: values of the endpoint by seed, and the figures beside them.

Where a seed failed, what the other seeds have is no number of the arm: its means and curves are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from gpt_jax.ablation import statistics as st
from gpt_jax.ablation import values
from gpt_jax.ablation.endpoint import Endpoint
from gpt_jax.ablation.findings import ArmResults, Curves, Diagnostics
from gpt_jax.ablation.schema import AccuracyBy, ArmPlan, ArmRecord, Measurements, Points, StudyRecord
from gpt_jax.ablation.study_runs import StudyRun
from gpt_jax.ablation.values import SeedRuns
from gpt_jax.runs import metrics

CURVE_POINTS = 150


def own_rate(arm: ArmRecord, runs: Sequence[StudyRun], study: StudyRecord) -> float | None:
    """The learning rate of the arm's figures: that of its runs; of a sweep the base's rate, or the middle one where the
    sweep leaves that out. None for an arm without runs.
    """
    rates = sorted({run.planned.learning_rate for run in runs})
    if len(rates) < 2:
        return rates[0] if rates else None
    base = next((other for other in study.arms if other.name == study.baseline), arm).config["optimizer"]
    return base["learning_rate"] if base["learning_rate"] in rates else rates[(len(rates) - 1) // 2]


def seeds_of(arm: ArmRecord, runs: Sequence[StudyRun], rate: float | None) -> dict[str, SeedRuns]:
    """The arm's runs by seed."""
    by_seed: dict[int, list[StudyRun]] = {}
    for run in runs:
        by_seed.setdefault(run.planned.seed, []).append(run)
    own = {seed: [run for run in found if run.planned.learning_rate == rate] for seed, found in by_seed.items()}
    return {str(seed): SeedRuns(arm, own[seed][0], found) for seed, found in by_seed.items() if own[seed]}


def values_of(endpoint: Endpoint, seeds: Mapping[str, SeedRuns]) -> dict[str, float | None]:
    """The endpoint by seed, None where the seed failed; a seed whose value is not known yet is absent."""
    found = {seed: values.value(endpoint, runs) for seed, runs in seeds.items()}
    return {seed: None if math.isnan(value) else value for seed, value in found.items() if value is not None}


def arm_results(
    arm: ArmRecord, runs: Sequence[StudyRun], seeds: Mapping[str, SeedRuns], known: Mapping[str, float | None]
) -> ArmResults:
    """The results of an arm without its comparison with the baseline; `known` are the values that are compared."""
    done = [found.own for found in seeds.values() if found.own.is_done]
    has_failures = any(run.has_failed for run in done)
    figures = [] if has_failures else done
    measured = [run.measured for run in figures if run.measured is not None]
    speeds = [run.measured for run in done if run.measured is not None]
    rates = sorted({run.planned.learning_rate for run in runs})
    by_rate = {rate: [r.loss for r in runs if r.is_done and r.planned.learning_rate == rate] for rate in rates}
    summary = st.summarize([value for value in known.values() if value is not None])
    summary = st.summarize([]) if None in known.values() else summary
    return ArmResults(
        **{field.name: getattr(arm, field.name) for field in fields(ArmPlan)},
        measured_decode_tokens_per_second=median([m.measured_decode_tokens_per_second for m in speeds]),
        measured_training_tokens_per_second=median(_rates(done)),
        measured_peak_bytes=median([m.measured_peak_bytes for m in speeds]),
        learning_rate=next((found.own.planned.learning_rate for found in seeds.values()), None),
        learning_rate_sensitivity=_sensitivity(seeds),
        mean=summary.mean,
        std=summary.std,
        n=len(known),
        interval=summary.interval,
        values=known,
        losses={seed: found.own.loss for seed, found in seeds.items() if found.own.is_done},
        by_learning_rate={f"{rate:g}": tuple(x) for rate, x in by_rate.items()} if len(rates) > 1 else None,
        curves=Curves(_curve([r.train for r in figures]), _curve([r.validation for r in figures])),
        suites={} if has_failures else _suites(arm, figures),
        loss_by_position=tuple(row[:2] for row in _points([m.loss_by_position for m in measured])),
        extrapolation=_points([m.extrapolation for m in measured]),
        accuracy_by=_accuracy([m.accuracy_by for m in measured if m.accuracy_by is not None]),
        diagnostics=_diagnostics(done, measured),
        inside={} if has_failures else _inside(arm, seeds),
        runs=tuple(r.described() for r in runs),
    )


def _sensitivity(seeds: Mapping[str, SeedRuns]) -> float | None:
    """The mean over the seeds of the sensitivity to the learning rate; None without a sweep, or where a seed failed at
    every rate.
    """
    found = [x for x in map(values.sensitivity, seeds.values()) if x is not None]
    return None if not found or any(map(math.isnan, found)) else mean(found)


def _rates(runs: Sequence[StudyRun]) -> list[float | None]:
    """Tokens per second while each step was taken, of all runs that trained together."""
    found = [(r["tokens_per_second"], run.planned.together) for run in runs for r in run.train]
    return [None if rate is None else rate * together for rate, together in found]


def mean(values: Sequence[float | int | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def median(values: Sequence[float | int | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def _curve(runs: Sequence[Sequence[Mapping[str, Any]]], name: str = "loss") -> Points:
    """(step, mean, least, most) over the runs, neighbouring steps averaged where they are many."""
    by_run = [{r["step"]: r[name] for r in found if r.get(name) is not None} for found in runs]
    steps = sorted(set.intersection(*map(set, by_run))) if by_run else []
    if not steps:
        return ()
    values = np.array([[losses[step] for step in steps] for losses in by_run])
    result = []
    for part in np.array_split(np.arange(len(steps)), min(len(steps), CURVE_POINTS)):
        means = values[:, part].mean(axis=1)
        middle = steps[part[-1]] if len(part) == 1 else float(np.mean([steps[i] for i in part]))
        result.append((middle, float(means.mean()), float(means.min()), float(means.max())))
    return tuple(result)


def _points(runs: Sequence[Points]) -> Points:
    """(x, mean, least, most) over the runs, of the x that all have."""
    tables: list[dict[Any, Any]] = [{x: value for x, value in run} for run in runs]
    shared = [x for x in tables[0] if all(x in t for t in tables)] if tables else []
    columns = {x: np.array([t[x] for t in tables]) for x in shared}
    return tuple((x, float(v.mean()), float(v.min()), float(v.max())) for x, v in columns.items())


def _accuracy(found: Sequence[AccuracyBy]) -> AccuracyBy | None:
    return AccuracyBy(found[0].label, tuple(row[:2] for row in _points([f.points for f in found]))) if found else None


def _diagnostics(runs: Sequence[StudyRun], measured: Sequence[Measurements]) -> Diagnostics:
    found = [m.diagnostics for m in measured]
    return Diagnostics(
        attention_entropy=mean([d.attention_entropy for d in found]),
        sink_mass=mean([d.sink_mass for d in found]),
        largest_logit=mean([d.largest_logit for d in found]),
        gradient_norm=median([r["grad_norm"] for run in runs for r in run.train]),
        skipped_steps=mean([run.train[-1]["skipped"] for run in runs if run.train]),
    )


def _suites(arm: ArmRecord, runs: Sequence[StudyRun]) -> dict[str, Points]:
    """What the runs answered over training, by name, of an arm whose runs are asked suites."""
    asked = arm.config.get("suites")  # None: of earlier studies
    if asked is None or asked["names"] is None:
        return {}
    found = [run.answered(asked["questions"]) for run in runs]
    names = dict.fromkeys(name for records in found for record in records for name in metrics.plotted(record))
    curves = {name: _curve(found, name) for name in names}
    return {name: curve for name, curve in curves.items() if curve}


def _inside(arm: ArmRecord, seeds: Mapping[str, SeedRuns]) -> dict[str, dict[str, float]]:
    """The scores of heads after the last step, by score and seed, of an arm whose runs record them."""
    asked = arm.config.get("diagnostics")  # None: of earlier studies
    if asked is None or asked["every"] is None:
        return {}
    found: dict[str, dict[str, float]] = {}
    for seed, runs in seeds.items():
        for score, value in runs.own.scores(asked["rows"], asked["tokens"]).items():
            found.setdefault(score, {})[seed] = value
    return found
