"""Arms against the baseline: paired differences, and the verdict on each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gpt_jax.ablation import statistics as st
from gpt_jax.ablation.findings import ArmResults, Versus
from gpt_jax.ablation.schema import StudyRecord
from gpt_jax.ablation.statuses import diverged


def compare_arms(arms: Sequence[ArmResults], study: StudyRecord) -> tuple[ArmResults, ...]:
    """The arms with `versus_baseline` of all but the baseline, from the seeds that both finished. Holm's correction
    counts the arms that are ranked.
    """
    baseline = next(arm for arm in arms if arm.name == study.baseline)
    found: dict[str, st.Comparison] = {}
    for arm in arms:
        pairs = seed_pairs(arm, baseline)
        if arm is not baseline and pairs:
            found[arm.name] = st.compare([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
    reasons = {arm.name: _why_not_ranked(arm, baseline, study) for arm in arms}
    corrected = st.holm({name: c.t_p for name, c in found.items() if reasons[name] is None})
    smallest = study.smallest_difference
    versus = {
        name: _versus(c, corrected[name] if name in corrected else None, smallest, reasons[name])
        for name, c in found.items()
    }
    return tuple(
        dataclasses.replace(arm, versus_baseline=versus[arm.name]) if arm.name in versus else arm for arm in arms
    )


def seed_pairs(arm: ArmResults, baseline: ArmResults) -> list[tuple[float, float]]:
    """(the arm's loss, the baseline's) for each seed that both finished."""
    pairs = [(arm.losses[seed], loss) for seed, loss in baseline.losses.items() if seed in arm.losses]
    return [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]


def _why_not_ranked(arm: ArmResults, baseline: ArmResults, study: StudyRecord) -> str | None:
    if reason := diverged(arm):
        return reason
    if reason := diverged(baseline):
        return f"not ranked: the baseline {reason}"
    if not arm.is_ranked:
        return f"not ranked: its {study.budget.match} are {arm.budget_ratio:.3f} × the baseline's"
    return None


def _versus(c: st.Comparison, p_holm: float | None, smallest: float | int, why_not: str | None) -> Versus:
    verdict = st.verdict(c, p_holm, smallest) if why_not is None else why_not
    is_open = verdict == "undecided" and c.std is not None
    needed = max(c.n + 1, st.seeds_to_decide(c.std, smallest)) if is_open and c.std is not None else None
    return Versus(
        mean=c.mean,
        t_interval=c.t_interval,
        bca_interval=c.bca_interval,
        t_p=c.t_p,
        t_p_holm=p_holm,
        sign_flip_p=c.sign_flip_p,
        verdict=verdict,
        seeds_to_decide=needed,
    )
