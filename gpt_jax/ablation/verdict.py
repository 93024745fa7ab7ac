"""Arms against the baseline, and the answer in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpt_jax.ablation import statistics as st
from gpt_jax.ablation.table import diverged, is_lost, signed


def compare_arms(arms: Sequence[dict[str, Any]], study: Mapping[str, Any]) -> None:
    """Fills `versus_baseline` of every arm but the baseline, by the seeds that both finished; Holm's correction is over
    the arms that are ranked.
    """
    baseline = next(arm for arm in arms if arm["name"] == study["baseline"])
    found: dict[str, st.Comparison] = {}
    for arm in arms:
        ours, theirs = arm["losses"], baseline["losses"]
        seeds = [s for s in theirs if s in ours and ours[s] is not None and theirs[s] is not None]
        if arm is not baseline and seeds:
            found[arm["name"]] = st.compare([ours[s] for s in seeds], [theirs[s] for s in seeds])
    reasons = {arm["name"]: _why_not_ranked(arm, baseline, study) for arm in arms}
    ranked = {name for name, reason in reasons.items() if reason is None}
    corrected = st.holm({name: c.t_p for name, c in found.items() if name in ranked})
    for arm in arms:
        if arm["name"] in found:
            comparison = found[arm["name"]]
            p = corrected[arm["name"]] if arm["name"] in corrected else None
            arm["versus_baseline"] = _versus(comparison, p, study["smallest_difference"], reasons[arm["name"]])


def _why_not_ranked(arm: Mapping[str, Any], baseline: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    if reason := diverged(arm):
        return reason
    if reason := diverged(baseline):
        return f"not ranked: the baseline {reason}"
    if not arm["is_ranked"]:
        return f"not ranked: its {study['budget']['match']} are {arm['budget_ratio']:.3f} × the baseline's"
    return None


def _versus(c: st.Comparison, p_holm: float | None, smallest: float, why_not: str | None) -> dict[str, Any]:
    verdict = st.verdict(c, p_holm, smallest) if why_not is None else why_not
    is_open = verdict == "undecided" and c.std is not None
    needed = max(c.n + 1, st.seeds_to_decide(c.std, smallest)) if is_open and c.std is not None else None
    return {
        "mean": c.mean,
        "t_interval": c.t_interval,
        "bca_interval": c.bca_interval,
        "t_p": c.t_p,
        "t_p_holm": p_holm,
        "sign_flip_p": c.sign_flip_p,
        "verdict": verdict,
        "seeds_to_decide": needed,
    }


def verdict_sentence(arms: Sequence[Mapping[str, Any]], study: Mapping[str, Any], done: int, runs: int) -> str:
    """The answer so far: each arm against the baseline, in nats per token with 95% intervals."""
    parts = [_part(arm, study) for arm in arms if arm["versus_baseline"] is not None]
    parts += [f"{arm['name']} {diverged(arm)}" for arm in arms if is_lost(arm)]
    said = f"against {study['baseline']}, {'; '.join(parts)}." if parts else "there is nothing to compare yet."
    return f"So far ({done} of {runs} runs are done): {said}" if done < runs else said[0].upper() + said[1:]


def _part(arm: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    versus, name = arm["versus_baseline"], arm["name"]
    interval = versus["t_interval"]
    within = "" if interval is None else f" ({signed(interval[0])} to {signed(interval[1])})"
    difference = f"{signed(versus['mean'])} nats{within}"
    match versus["verdict"]:
        case "better" | "worse" as word:
            return f"{name} is {word}: {difference}"
        case "no difference that matters":
            return f"{name} makes no difference larger than {study['smallest_difference']:g}: {difference}"
        case "undecided":
            needed = versus["seeds_to_decide"]
            return f"{name} is undecided: {difference}" + (f", about {needed} seeds would decide" if needed else "")
        case why:
            return f"{name} {why}, {difference}" if why.startswith("diverged") else f"{name} is {why}, {difference}"
