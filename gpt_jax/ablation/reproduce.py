"""A study run again from its claim, and whether it came out the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpt_jax.ablation.claim import AddressedRun, Claim, ClaimOutcome, study_from_claim
from gpt_jax.ablation.endpoint import Endpoint, ToTarget
from gpt_jax.ablation.plan import StudyPlan, make_plan
from gpt_jax.ablation.schema import Grouping, Interval
from gpt_jax.ablation.study import Study, change
from gpt_jax.config.conversion import config_hash, convert
from gpt_jax.config.errors import ConfigError, MissingFile
from gpt_jax.pages.numbers import signed
from gpt_jax.runs.address import changed_parts

MOST_NAMED = 4
OWN_TEXT = "name the claim's text with --data.path=FILE"


@dataclass(frozen=True)
class Reproduction:
    """Whether a study came out the same, in one sentence; `is_same` is None where there is nothing to compare with."""

    is_same: bool | None
    sentence: str


# ── the study again ──────────────────────────────────────────────────────────────────────────────────────────────────


def study_again(claim: Claim, seeds: int | None = None, path: str | None = None) -> Study:
    """The claim's study as it ran last, with its first `seeds` seeds and the text at `path`; the noise of the baseline
    is not measured again.

    Raises:
      ConfigError: the claim has fewer seeds, or this version does not know one of its settings.
    """
    study = study_from_claim(claim.study)
    if seeds is not None and seeds > len(study.seeds):
        raise ConfigError(f"the claim has {len(study.seeds)} seeds, not {seeds}: leave --seeds out or give fewer")
    base = study.base if path is None else change(study.base, {"data.path": path})
    return replace(study, seeds=study.seeds[:seeds], fresh_seeds=0, base=base)


def plan_again(claim: Claim, seeds: int | None = None, path: str | None = None) -> tuple[StudyPlan, Grouping]:
    """The plan of `study_again`, with as many seeds in one program as in the claim.

    Raises:
      ConfigError: also if the data is not that of the claim.
      MissingFile: the text is not where it was.
    """
    together = 1 if claim.outcome is None else claim.outcome.together
    try:
        plan = make_plan(study_again(claim, seeds, path), together)
    except MissingFile as error:
        raise MissingFile(f"{error}; {OWN_TEXT}") from None
    if claim.study.data_hash not in (None, plan.data_hash):
        raise ConfigError(
            f"the data is not the claim's in content and file name (its hash is {plan.data_hash}, the claim's"
            f" {claim.study.data_hash}): {OWN_TEXT}"
        )
    return plan, Grouping(together, "as in the claim", config_hash(plan.arms[plan.study.baseline].config))


# ── is it the same? ──────────────────────────────────────────────────────────────────────────────────────────────────


def compare_outcomes(claim: Claim, found: ClaimOutcome) -> Reproduction:
    """Whether `found`, at all or some of the claim's seeds, is what the claim says: bit-equal values where the
    addresses of the runs are equal, else differences from the baseline within the claim's intervals.
    """
    claimed = claim.outcome
    if claimed is None:
        return Reproduction(None, f"The claim has no outcome to compare with. {found.verdict}")
    pairs = _pairs(claimed, found)
    lost = [arm for arm in dict.fromkeys([*claimed.arms, *found.arms]) if arm not in {pair[0] for pair in pairs}]
    if lost:
        return Reproduction(None, f"No value of {' and '.join(lost)} can be compared with the claim’s. {found.verdict}")
    pairs += _answers(claimed, found)
    unequal = [pair for pair in pairs if pair[2] != pair[3]]
    differing = _differing(claimed, found)
    but = f" This differs: {'; '.join(differing)}." if differing else ""
    count = f"all {len(pairs)} values of {len(found.arms)} arms"
    if not unequal:
        return Reproduction(True, f"It came out the same: {count} are bit-equal to the claim’s.{but}")
    if not differing and not _is_timed(claim):
        arm, seed, old, new = unequal[0]
        reason = "on the same kind of device, with the same versions and code"
        more = f", as are {len(unequal) - 1} more values" if len(unequal) > 1 else ""
        return Reproduction(
            False,
            f"It did not come out the same: {reason}, {arm} with seed {seed} is {_value(new)} in place of"
            f" {_value(old)}{more}.",
        )
    outside = _outside(claim, claimed, found)
    if outside:
        return Reproduction(False, f"It did not come out the same: {'; '.join(outside)}.{but}")
    same = f"all differences from {claim.study.baseline} lie within the claim’s intervals"
    return Reproduction(True, f"It came out the same: {same}, and the values are not bit-equal.{but}")


def _pairs(claimed: ClaimOutcome, found: ClaimOutcome) -> list[tuple[str, str, float | None, float | None]]:
    """(arm, seed, the claim's value, the new value) at the seeds that were run again."""
    return [
        (name, seed, claimed.arms[name].values[seed], value)
        for name, arm in found.arms.items()
        if name in claimed.arms
        for seed, value in arm.values.items()
        if seed in claimed.arms[name].values
    ]


def _answers(claimed: ClaimOutcome, found: ClaimOutcome) -> list[tuple[str, str, float | None, float | None]]:
    """(arm and secondary endpoint, seed, the claim's accuracy, the new one) where both were asked."""
    return [
        (f"{name} on {endpoint}", seed, claimed.arms[name].answers[endpoint][seed], value)
        for name, arm in found.arms.items()
        for endpoint, by_seed in arm.answers.items()
        for seed, value in by_seed.items()
        if seed in claimed.arms[name].answers.get(endpoint, {})
    ]


def _differing(claimed: ClaimOutcome, found: ClaimOutcome) -> list[str]:
    """In what the addresses of the runs differ, in words."""
    old, new = _by_run(claimed), _by_run(found)
    said: dict[str, None] = {}
    for key, parts in new.items():
        if key in old:
            said |= dict.fromkeys(changed_parts(old[key], parts))
        else:
            said[f"the learning rate of {key[0]}"] = None
    more = [f"{len(said) - MOST_NAMED} more"] if len(said) > MOST_NAMED else []
    return [*list(said)[:MOST_NAMED], *more]


def _by_run(outcome: ClaimOutcome) -> dict[tuple[str, int, float], Mapping[str, Mapping[str, Any]]]:
    def key(run: AddressedRun) -> tuple[str, int, float]:
        return run.arm, run.seed, run.learning_rate

    return {key(run): {**outcome.shared, **run.parts} for run in outcome.runs.values()}


def _is_timed(claim: Claim) -> bool:
    """Whether the values are measured by a clock, which no two runs agree on."""
    endpoint: Endpoint = convert(claim.study.endpoint, Endpoint, "endpoint")
    return isinstance(endpoint, ToTarget) and endpoint.cost == "seconds"


def _outside(claim: Claim, claimed: ClaimOutcome, found: ClaimOutcome) -> list[str]:
    """What does not agree with the claim: a seed that fails in one of the two only, or a difference outside of its
    interval.
    """
    pairs, baseline = _pairs(claimed, found), claim.study.baseline
    failed = [(arm, seed, new is None) for arm, seed, old, new in pairs if (old is None) != (new is None)]
    if failed:
        return [f"{arm} {'failed' if is_new else 'did not fail'} with seed {seed}" for arm, seed, is_new in failed]
    shifts = {(arm, seed): new - old for arm, seed, old, new in pairs if old is not None and new is not None}
    said = []
    for name, arm in claimed.arms.items():
        seeds = [seed for known, seed in shifts if known == name and (baseline, seed) in shifts]
        if name == baseline or not seeds or arm.difference is None:
            continue
        # Of fewer seeds: by how much these moved, which leaves out how they differ from the claim's other seeds.
        moved = sum(shifts[name, seed] - shifts[baseline, seed] for seed in seeds) / len(seeds)
        text = _compared(f"{name} − {baseline}", float(arm.difference) + moved, arm.interval)
        said += [text] if text else []
    return said


def _compared(what: str, difference: float, interval: Interval | None) -> str | None:
    if interval is None:
        return f"{what} has no interval in the claim, and the values are not bit-equal"
    if interval[0] <= difference <= interval[1]:
        return None
    low, high = map(signed, interval)
    return f"{what} is {signed(difference)}, outside of the claim’s {low} to {high}"


def _value(value: float | None) -> str:
    return "a failure" if value is None else repr(value)
