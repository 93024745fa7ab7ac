"""What a study has found so far, from its folder alone: `study.json` lists the runs, and their folders hold what came
of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from gpt_jax.ablation import history, records
from gpt_jax.ablation import statistics as st
from gpt_jax.ablation.findings import ArmResults, Copies, Curves, Diagnostics, Noise, Repeat, RunRecord, StudyResults
from gpt_jax.ablation.log import read_log
from gpt_jax.ablation.marks import marks
from gpt_jax.ablation.schema import (
    FAILURE,
    MEASUREMENTS,
    OUTCOME,
    RESULTS,
    STUDY,
    AccuracyBy,
    ArmPlan,
    ArmRecord,
    Measurements,
    Origin,
    PlannedRunRecord,
    Points,
    Rules,
    RunOutcome,
    StudyRecord,
)
from gpt_jax.ablation.schema import RUNS as RUNS
from gpt_jax.ablation.sentence import verdict_sentence
from gpt_jax.ablation.verdict import compare_arms
from gpt_jax.config.errors import MissingFile
from gpt_jax.runs import metrics
from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.folder import METRICS, RunFolder, Workdir

CURVE_POINTS = 150


def outcome(folder: RunFolder) -> RunOutcome | None:
    """How a run ended; None while it has not."""
    return records.read(RunOutcome, folder, OUTCOME) if folder.exists(OUTCOME) else None


def measurements(folder: RunFolder) -> Measurements | None:
    """What was measured of a run; None before it was."""
    return records.read(Measurements, folder, MEASUREMENTS) if folder.exists(MEASUREMENTS) else None


def final_loss(folder: RunFolder) -> float | None:
    """The validation loss after the last step, in nats per token; None where there is none, or it is not finite."""
    found = metrics.read(folder, "validation")
    return found[-1]["loss"] if found else None


def write_results(workdir: Workdir) -> StudyResults:
    """Collects the results and writes `results.json`; the log notes that they are looked at, and the claim what came
    out.
    """
    folder = RunFolder(workdir)
    if folder.exists(STUDY):
        history.look(folder, history.under_claim(records.read(StudyRecord, folder, STUDY), folder))
    found = collect(workdir)
    records.write(found, folder, RESULTS)
    history.finish(folder, found)
    return found


def collect(workdir: Workdir) -> StudyResults:
    """The results of a study, complete or not.

    Raises:
      MissingFile: the folder holds no study.
      ConfigError: a file of the study is damaged.
    """
    folder = RunFolder(workdir)
    if not folder.exists(STUDY):
        raise MissingFile(f"there is no study in {folder}: give the --workdir of experiments.ablate")
    study = history.under_claim(records.read(StudyRecord, folder, STUDY), folder)
    runs = [_Run(folder, planned) for planned in study.runs]
    arms = [_arm(arm, [r for r in runs if r.is_of(arm.name)], study) for arm in study.arms]
    arms = list(compare_arms(arms, study))
    return StudyResults(
        **{field.name: getattr(study, field.name) for field in fields(Rules)},
        question=study.question,
        baseline=study.baseline,
        seeds=study.seeds,
        budget=study.budget,
        is_smoke=study.is_smoke,
        is_forced=study.is_forced,
        marks=marks(folder, study, arms),
        log=read_log(folder),
        verdict=verdict_sentence(arms, study, sum(r.is_done for r in runs), len(runs)),
        noise=_noise(runs),
        aa=_aa(runs),
        arms=tuple(arms),
        repeat=_repeat(study, runs),
    )


def _repeat(study: StudyRecord, runs: Sequence[_Run]) -> Repeat:
    once = {r.planned.folder: r for r in runs}.values()
    return Repeat(
        **{field.name: getattr(study.repeat, field.name) for field in fields(Origin)},
        together=study.together,
        configs={arm.name: arm.config for arm in study.arms},
        failures=tuple(r.failure for r in runs if r.failure is not None),
        wall_seconds=round(sum(r.wall_seconds or 0.0 for r in once), 2),
    )


class _Run:
    """A planned run and what its folder holds."""

    def __init__(self, study: RunFolder, planned: PlannedRunRecord) -> None:
        self.planned, self.folder = planned, RunFolder(study.file(planned.folder))
        ended = outcome(self.folder)
        self.status = ended.status if ended else "interrupted" if self.folder.exists(METRICS) else "missing"
        self.wall_seconds = ended.wall_seconds if ended else None
        self.is_done = ended is not None
        found = metrics.read(self.folder)
        self.train = [r for r in found if r["split"] == "train"]
        self.validation = [r for r in found if r["split"] == "validation"]
        is_finished = self.status == "finished"
        self.loss: float | None = self.validation[-1]["loss"] if is_finished and self.validation else None
        self.measured = measurements(self.folder)
        has_failed = not self.is_done and self.folder.exists(FAILURE)
        self.failure = self.folder.read_text(FAILURE).split("\n")[0] if has_failed else None
        if self.status == "diverged":
            rate = planned.learning_rate
            self.failure = f"{planned.arm}, seed {planned.seed}, learning rate {rate:g}: diverged"

    def is_of(self, arm: str) -> bool:
        return self.planned.purpose == "arm" and self.planned.arm == arm

    def described(self) -> RunRecord:
        p = self.planned
        return RunRecord(p.seed, p.learning_rate, p.folder, self.status, p.config_hash, self.wall_seconds)

    def numbers(self) -> list[Any]:
        """All that must be equal in equal runs: the records, and the fingerprints of the last checkpoint."""
        clean = [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in [*self.train, *self.validation]]
        if self.status != "finished":
            return clean
        with Checkpoints(self.folder, read_only=True) as checkpoints:
            return [*clean, checkpoints.saved_fingerprints(self.planned.steps)]


def _arm(arm: ArmRecord, runs: Sequence[_Run], study: StudyRecord) -> ArmResults:
    """The results of one arm without its comparison with the baseline."""
    initial = _mean([r.train[0]["loss"] for r in runs if r.train and r.train[0]["loss"] is not None])
    by_rate: dict[float, list[_Run]] = {}
    for run in runs:
        if run.is_done:
            by_rate.setdefault(run.planned.learning_rate, []).append(run)
    losses = {rate: [r.loss for r in group] for rate, group in sorted(by_rate.items())}
    best = min(losses, key=lambda rate: _badness(losses[rate])) if losses else None
    chosen = [] if best is None else by_rate[best]
    measured = [r.measured for r in chosen if r.measured is not None]
    summary = st.summarize([r.loss for r in chosen if r.loss is not None])
    return ArmResults(
        **{field.name: getattr(arm, field.name) for field in fields(ArmPlan)},
        measured_decode_tokens_per_second=_median([m.measured_decode_tokens_per_second for m in measured]),
        measured_training_tokens_per_second=_median(_rates(chosen)),
        measured_peak_bytes=_median([m.measured_peak_bytes for m in measured]),
        learning_rate=best,
        learning_rate_sensitivity=None if initial is None else st.learning_rate_sensitivity(losses, initial),
        mean=summary.mean,
        std=summary.std,
        n=summary.n,
        interval=summary.interval,
        values={str(r.planned.seed): r.loss for r in chosen},
        losses={str(r.planned.seed): r.loss for r in chosen},
        by_learning_rate={f"{rate:g}": tuple(values) for rate, values in losses.items()},
        curves=Curves(_curve([r.train for r in chosen]), _curve([r.validation for r in chosen])),
        loss_by_position=tuple(row[:2] for row in _points([m.loss_by_position for m in measured])),
        extrapolation=_points([m.extrapolation for m in measured]),
        accuracy_by=_accuracy([m.accuracy_by for m in measured if m.accuracy_by is not None]),
        diagnostics=_diagnostics(chosen, measured),
        runs=tuple(r.described() for r in runs),
    )


def _badness(losses: Sequence[float | None]) -> tuple[int, float]:
    """What the best learning rate has least of: runs that diverged, then mean loss."""
    mean = _mean(losses)
    return sum(loss is None for loss in losses), math.inf if mean is None else mean


def _rates(runs: Sequence[_Run]) -> list[float | None]:
    """Tokens per second while each step was taken, of all runs that trained together."""
    found = [(r["tokens_per_second"], run.planned.together) for run in runs for r in run.train]
    return [None if rate is None else rate * together for rate, together in found]


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _median(values: Sequence[float | int | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def _curve(runs: Sequence[Sequence[Mapping[str, Any]]]) -> Points:
    """(step, mean, least, most) over the runs, neighbouring steps averaged where they are many."""
    by_run = [{r["step"]: r["loss"] for r in found if r["loss"] is not None} for found in runs]
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


def _diagnostics(runs: Sequence[_Run], measured: Sequence[Measurements]) -> Diagnostics:
    found = [m.diagnostics for m in measured]
    return Diagnostics(
        attention_entropy=_mean([d.attention_entropy for d in found]),
        sink_mass=_mean([d.sink_mass for d in found]),
        largest_logit=_mean([d.largest_logit for d in found]),
        gradient_norm=_median([r["grad_norm"] for run in runs for r in run.train]),
        skipped_steps=_mean([run.train[-1]["skipped"] for run in runs if run.train]),
    )


def _noise(runs: Sequence[_Run]) -> Noise | None:
    losses = [r.loss for r in runs if r.planned.purpose == "noise" and r.loss is not None]
    summary = st.summarize(losses)
    return Noise(summary.mean, summary.std, summary.n) if losses else None


def _aa(runs: Sequence[_Run]) -> Copies | None:
    """Whether the copies of the baseline's runs came out bit-equal; None while none of the pairs is done."""
    equal = []
    for copy in (r for r in runs if r.planned.purpose == "aa" and r.is_done):
        for run in (r for r in runs if r.planned.purpose == "arm" and r.is_done):
            ours, theirs = run.planned, copy.planned
            if (ours.seed, ours.learning_rate, ours.config_hash) == (
                theirs.seed,
                theirs.learning_rate,
                theirs.config_hash,
            ):
                equal.append(run.numbers() == copy.numbers())
    return Copies(all(equal)) if equal else None
