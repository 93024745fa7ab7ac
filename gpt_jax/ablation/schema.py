"""The records of a study: what `study.json`, `results.json` and the files of its runs hold. A field's name here is its
name in the file.

Losses are nats per token. A field that is None was not measured, or does not apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Number = float | int
Interval = tuple[Number, Number]
Points = tuple[tuple[Number | None, ...], ...]  # (x, mean) or (x, mean, lowest, highest) over the seeds


# ── what is planned: study.json ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Budget:
    """The cost that is matched, and the settings that are solved for it."""

    match: str | None = None
    field: str | None = None


@dataclass(frozen=True)
class Grouping:
    """`count` seeds train in one program, for this `reason`; the seconds are those that all seeds of the baseline
    would take, compilation included, each way: one after the other, and together. `config_hash` is that of the
    baseline which it was chosen for.
    """

    count: int
    reason: str
    config_hash: str
    measured_one_by_one_seconds: float | None = None
    measured_together_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class ArmPlan:
    """An arm's changes of the baseline (dotted key → value) and its costs. `budget_ratio` is its cost ÷ the
    baseline's; an arm that is not ranked gets no verdict.
    """

    name: str
    changes: Mapping[str, Any] | None = None
    parameters: Number | None = None
    parameters_non_embedding: Number | None = None
    flops_per_token: Number | None = None
    kv_bytes_per_token: Number | None = None
    budget_ratio: float | None = None
    is_ranked: bool = True


@dataclass(frozen=True, kw_only=True)
class ArmRecord(ArmPlan):
    """An arm of `study.json`, with its configuration."""

    config: Mapping[str, Any]


@dataclass(frozen=True)
class PlannedRunRecord:
    """A run of `study.json`: `folder` is relative to the study's, `together` counts the seeds in its program."""

    arm: str
    seed: int
    learning_rate: float
    purpose: str
    folder: str
    steps: int
    config_hash: str
    together: int = 1


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What made the study: the command, the versions of the libraries, the commit, a hash of the data."""

    command: str | None = None
    versions: Mapping[str, str] | None = None
    git: str | None = None
    code: str | None = None  # only in files of gpt_jax before its runs had addresses
    data_hash: str | None = None


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """`study.json`: what the results need of the study, without its file."""

    question: str
    metric: str = "loss"
    smallest_difference: float | int
    baseline: str
    seeds: tuple[int, ...]
    learning_rates: tuple[float | int, ...] = ()
    budget: Budget = Budget()
    probe: str | None = None
    arms: tuple[ArmRecord, ...]
    runs: tuple[PlannedRunRecord, ...]
    together: Grouping | None = None
    repeat: Origin = Origin()


# ── what a run leaves: outcome.json, measurements.json ───────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class RunOutcome:
    """`outcome.json` of a run at its end. `status` is "finished" or "diverged", for which there is a `reason`;
    `address` holds the parts of the run's address, by part and name.
    """

    status: str
    wall_seconds: float
    reason: str | None = None
    address: Mapping[str, Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class AccuracyBy:
    """Accuracy, a share of the answers, by x; `label` says what x is."""

    label: str
    points: Points = ()


@dataclass(frozen=True)
class AttentionDiagnostics:
    """What goes on inside a model's attention: means over layers, heads and positions, and the largest |logit|."""

    attention_entropy: float | None = None
    sink_mass: float | None = None
    largest_logit: float | None = None


@dataclass(frozen=True)
class Measurements:
    """`measurements.json`: what was measured of a trained run. `address` says which code and settings measured it."""

    loss_by_position: Points = ()
    diagnostics: AttentionDiagnostics = AttentionDiagnostics()
    extrapolation: Points = ()
    accuracy_by: AccuracyBy | None = None
    measured_decode_tokens_per_second: float | None = None
    measured_peak_bytes: int | None = None
    address: str | None = None


# ── what was found: results.json ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Versus:
    """An arm − the baseline, by pairs of one seed: mean, 95% intervals, p-values, and the verdict in words."""

    mean: Number | None = None
    t_interval: Interval | None = None
    bca_interval: Interval | None = None
    t_p: float | None = None
    t_p_holm: float | None = None
    sign_flip_p: float | None = None
    verdict: str | None = None
    seeds_to_decide: int | None = None


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
    """An arm of `results.json`. Means, curves and measurements are those of its best learning rate; `losses` are by
    seed, and by learning rate in the order of the seeds, None where a run diverged.
    """

    measured_decode_tokens_per_second: float | None = None
    measured_training_tokens_per_second: float | None = None
    measured_peak_bytes: Number | None = None
    best_learning_rate: Number | None = None
    learning_rate_at_edge: bool | None = None
    learning_rate_sensitivity: float | None = None
    mean: float | None = None
    std: float | None = None
    n: int | None = None
    interval: Interval | None = None
    versus_baseline: Versus | None = None
    losses: Mapping[str, float | None] = field(default_factory=dict)
    by_learning_rate: Mapping[str, tuple[float | None, ...]] | None = None
    curves: Curves | None = None
    loss_by_position: Points | None = None
    extrapolation: Points | None = None
    accuracy_by: AccuracyBy | None = None
    diagnostics: Diagnostics | None = None
    runs: tuple[RunRecord, ...] = ()


@dataclass(frozen=True)
class Noise:
    """Final losses of fresh seeds of the baseline."""

    mean: float | None = None
    std: float | None = None
    n: int = 0


@dataclass(frozen=True)
class Copies:
    """Whether the copies of the baseline's runs (A/A) are bit-equal to them."""

    equal: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Repeat(Origin):
    """What it takes to make the study again, and what went wrong."""

    together: Grouping | None = None
    configs: Mapping[str, Any] | None = None
    failures: tuple[str, ...] = ()
    wall_seconds: Number | None = None


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """`results.json`: the results of a study, whole or half-way, for its report."""

    question: str
    metric: str = "loss"
    smallest_difference: float | int | None = None
    baseline: str
    seeds: tuple[int, ...] | None = None
    budget: Budget | None = None
    verdict: str | None = None
    noise: Noise | None = None
    aa: Copies | None = None
    arms: tuple[ArmResults, ...]
    repeat: Repeat = Repeat()
