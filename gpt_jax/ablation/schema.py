"""The records of a study's plan and of its runs: what `study.json` and the files of the runs hold; `findings` has those
of `results.json`. A field's name here is its name in the file.

Losses are nats per token. A field that is None was not measured, or does not apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TOLERANCE = 0.01  # by how much a matched cost may differ from the baseline's

Number = float | int
Interval = tuple[Number, Number]
# The files of a study's folder, and of each run's.
STUDY, RESULTS, RUNS = "study.json", "results.json", "runs"
OUTCOME, MEASUREMENTS, FAILURE = "outcome.json", "measurements.json", "failure.txt"

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


@dataclass(frozen=True)
class Leaf:
    """A setting in which an arm differs from the baseline, and who asked for it: "arm" (its own words), "match" (the
    free key), or "type" (a setting that came with a type which the arm chose). `layers` are those in which it differs,
    counted from 0; empty: in all of them, or it is no setting of layers.
    """

    key: str
    baseline: Any = None
    arm: Any = None
    asked_by: str = "arm"
    layers: tuple[int, ...] = ()

    @property
    def where(self) -> str:
        """` in layers 0, 2`; nothing where it differs in all of them: two arms may differ in their layers alone."""
        layers = "layer" if len(self.layers) == 1 else "layers"
        return f" in {layers} {', '.join(map(str, self.layers))}" if self.layers else ""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A setting that the tuning of an arm tried; `loss` is the mean over the tuning seeds, None where one failed."""

    learning_rate: float
    weight_decay: float | None = None
    warmup: int | None = None
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The tuning of an arm: every setting tried, the chosen one (None: not yet), and whether its rate is at the edge of
    the grid. `runs` and `seconds` are what it took.
    """

    trials: tuple[Trial, ...] = ()
    best: Trial | None = None
    is_at_edge: bool = False
    runs: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ArmPlan:
    """An arm's changes of the baseline (dotted key → value, and leaf by leaf) and its costs. `tokens` and `flops` are
    those of a whole run. `budget_ratio` is its cost ÷ the baseline's; an arm that is not ranked gets no verdict.
    `parts` names the arms that a product combined. `tuned` is None where the study tunes nothing.
    """

    name: str
    changes: Mapping[str, Any] | None = None
    leaves: tuple[Leaf, ...] = ()
    parts: tuple[str, ...] = ()
    parameters: Number | None = None
    parameters_non_embedding: Number | None = None
    flops_per_token: Number | None = None
    kv_bytes_per_token: Number | None = None
    tokens: Number | None = None
    flops: Number | None = None
    budget_ratio: float | None = None
    is_ranked: bool = True
    tuned: Tuned | None = None

    @property
    def is_forced(self) -> bool:
        """Whether it is ranked off the budget, which takes --force."""
        return self.is_ranked and self.budget_ratio is not None and abs(self.budget_ratio - 1) > TOLERANCE


@dataclass(frozen=True, kw_only=True)
class ArmRecord(ArmPlan):
    """An arm of `study.json`, with its configuration."""

    config: Mapping[str, Any]


@dataclass(frozen=True)
class PlannedRunRecord:
    """A run of `study.json`: `folder` is relative to the study's, `together` counts the seeds in its program. Decay and
    warm-up are None where they are the arm's own.
    """

    arm: str
    seed: int
    learning_rate: float
    purpose: str
    folder: str
    steps: int
    config_hash: str
    together: int = 1
    weight_decay: float | None = None
    warmup: int | None = None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What made the study: the command, the versions of the libraries, the commit, a hash of the data."""

    command: str | None = None
    versions: Mapping[str, str] | None = None
    git: str | None = None
    code: str | None = None  # only in files of gpt_jax before its runs had addresses
    data_hash: str | None = None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all runs share, from the baseline's configuration. `validation_tokens` counts predicted tokens."""

    steps: int | None = None
    batch_size: int | None = None
    context_length: int | None = None
    tokens: int | None = None
    validation_tokens: int | None = None
    precision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How the study decides. `endpoint` is the endpoint with its type; a difference is in `unit`. `planned_seeds` is
    the number of seeds of the first look, `most_seeds` the largest that the claim allows.
    """

    endpoint: Mapping[str, Any] | None = None
    metric: str = "final validation loss"
    unit: str = "nats per token"
    lower_is_better: bool = True
    smallest_difference: float | int
    planned_seeds: int | None = None
    most_seeds: int | None = None
    fails_above: float | int | None = None
    rules_out_failures: float | None = None


@dataclass(frozen=True)
class SecondaryEndpoint:
    """A secondary endpoint of the study: the accuracy on questions of one `suite`, kind and length."""

    name: str
    suite: str
    smallest_difference: float


@dataclass(frozen=True, kw_only=True)
class StudyRecord(Rules):
    """`study.json`: what the results need of the study, without its file. `tuning` is what the first stage may try;
    what it tried and chose is with each arm. `jobs` counts the processes that shared a machine, `shards` the parts of
    the study that check their own determinism.
    """

    question: str
    baseline: str
    seeds: tuple[int, ...]
    learning_rates: tuple[float | int, ...] = ()
    tuning: Mapping[str, Any] | None = None
    budget: Budget = Budget()
    probe: str | None = None
    secondary: tuple[SecondaryEndpoint, ...] = ()
    setup: Setup = Setup()
    arms: tuple[ArmRecord, ...]
    runs: tuple[PlannedRunRecord, ...]
    is_smoke: bool = False
    is_forced: bool = False
    jobs: int = 1
    shards: int = 1
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
class Answered:
    """The accuracy of a run on a secondary endpoint, over so many `rows` or questions; `low` is the lower end of its
    95% interval. `chance` is the accuracy that needs no more than the row's own symbols.
    """

    value: float
    low: float
    chance: float
    rows: int


@dataclass(frozen=True)
class Measurements:
    """`measurements.json`: what was measured of a trained run; `answers` are by secondary endpoint. `address` says
    which code and settings measured it.
    """

    loss_by_position: Points = ()
    diagnostics: AttentionDiagnostics = AttentionDiagnostics()
    extrapolation: Points = ()
    accuracy_by: AccuracyBy | None = None
    answers: Mapping[str, Answered] = field(default_factory=dict)
    measured_decode_tokens_per_second: float | None = None
    measured_peak_bytes: int | None = None
    address: str | None = None
