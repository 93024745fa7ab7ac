"""A study's arms against its baseline: differences on the endpoint, failures, and the verdict on each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from gpt_jax.ablation import statistics as st
from gpt_jax.ablation.findings import ArmResults, Failures, Versus
from gpt_jax.ablation.judging import Rule, compare, compare_failures
from gpt_jax.ablation.power import seeds_to_decide
from gpt_jax.ablation.schema import Rules, StudyRecord

Rows = Mapping[str, tuple[np.ndarray, np.ndarray]]  # seed → sums and weights of the validation rows, (R,) each


def rule_of(study: StudyRecord, comparisons: int) -> Rule:
    """How the study judges `comparisons` that hold together."""
    planned = len(study.seeds) if study.planned_seeds is None else study.planned_seeds
    most = st.MOST_SEEDS if study.most_seeds is None else study.most_seeds
    rate = st.FAILURES_RULED_OUT if study.rules_out_failures is None else study.rules_out_failures
    return Rule(
        smallest_difference=study.smallest_difference,
        comparisons=max(1, comparisons),
        planned=planned,
        most=max(planned, most),
        lower_is_better=study.lower_is_better,
        rules_out_failures=rate,
    )


def compare_arms(
    arms: Sequence[ArmResults], study: StudyRecord, rows: Mapping[str, Rows] | None = None
) -> tuple[ArmResults, ...]:
    """The arms with their failures and, but for the baseline, `versus_baseline`. The correction counts the arms that
    are ranked. `rows` are the endpoint's sums by validation row of each arm.
    """
    baseline = next(arm for arm in arms if arm.name == study.baseline)
    rule = rule_of(study, sum(arm.is_ranked for arm in arms if arm is not baseline))
    return tuple(_judged(arm, baseline, study, rule, rows or {}) for arm in arms)


def _judged(
    arm: ArmResults, baseline: ArmResults, study: StudyRecord, rule: Rule, rows: Mapping[str, Rows]
) -> ArmResults:
    arm = dataclasses.replace(arm, failures=_failures(arm, study))
    if arm.name == baseline.name or not set(arm.values) & set(baseline.values):
        return arm
    versus = versus_of(arm, baseline, study, rule, rows)
    ratio = "" if arm.budget_ratio is None else f"{arm.budget_ratio:.3f} × "
    costs = f"its {study.budget.match} are {ratio}the baseline’s"
    if not arm.is_ranked:
        versus = dataclasses.replace(versus, p=None, verdict="not ranked", reason=costs, seeds_to_decide=None)
    elif arm.is_forced:
        forced = f"ranked by --force though {costs}"
        versus = dataclasses.replace(versus, reason=f"{versus.reason}; {forced}" if versus.reason else forced)
    return dataclasses.replace(arm, versus_baseline=versus)


def versus_of(arm: ArmResults, other: ArmResults, study: StudyRecord, rule: Rule, rows: Mapping[str, Rows]) -> Versus:
    """One arm against another of the study at the seeds that both have."""
    seeds = [seed for seed in other.values if seed in arm.values]
    if is_of_failures(study):
        ours, theirs = ([bool(a.values[seed]) for seed in seeds] for a in (arm, other))
        return compare_failures(sum(ours), sum(theirs), len(seeds), rule)
    versus = compare(arm.values, other.values, rule)
    if versus.mean is None:
        return versus
    if arm.name in rows and other.name in rows:
        versus = dataclasses.replace(versus, population_interval=_population(rows[arm.name], rows[other.name], seeds))
    if versus.verdict == "undecided" and versus.std and versus.mean is not None:
        versus = dataclasses.replace(versus, seeds_to_decide=seeds_to_decide(versus.mean, versus.std, len(seeds), rule))
    return versus


def is_of_failures(study: Rules) -> bool:
    """Whether the endpoint is the failure rate: the values are 1 for a seed that failed, else 0."""
    return study.endpoint is not None and study.endpoint["type"] == "FailureRate"


def _population(ours: Rows, theirs: Rows, seeds: Sequence[str]) -> st.Interval | None:
    """None unless all seeds have rows of one text."""
    if not all(seed in ours and seed in theirs for seed in seeds):
        return None
    weights = theirs[seeds[0]][1]
    if not all(np.array_equal(weights, side[seed][1]) for side in (ours, theirs) for seed in seeds):
        return None
    sums = np.stack([ours[seed][0].astype(np.float64) - theirs[seed][0] for seed in seeds])
    return st.population_interval(sums, weights)


def _failures(arm: ArmResults, study: Rules) -> Failures:
    """Of the seeds that failed on the endpoint, which a run of a finite loss may, as one that never reaches a target;
    of runs, where the endpoint counts these or has no value.
    """
    values = arm.losses if is_of_failures(study) else {**arm.losses, **arm.values}
    failed = sum(value is None for value in values.values())
    return Failures(failed=failed, n=len(values), interval=st.rate_interval(failed, len(values)))


def seed_pairs(arm: ArmResults, baseline: ArmResults) -> list[tuple[float, float]]:
    """(the arm's value, the baseline's) for each seed that both have; none where a seed failed on either side."""
    seeds = [seed for seed in baseline.values if seed in arm.values]
    pairs = [(arm.values[seed], baseline.values[seed]) for seed in seeds]
    found = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
    return found if len(found) == len(pairs) else []
