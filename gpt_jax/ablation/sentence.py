"""The answer of a study in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_jax.ablation.findings import ArmResults, Versus
from gpt_jax.ablation.schema import StudyRecord
from gpt_jax.ablation.statuses import diverged, is_lost
from gpt_jax.pages.numbers import signed


def verdict_sentence(arms: Sequence[ArmResults], study: StudyRecord, done: int, runs: int) -> str:
    """What `done` of the study's `runs` say: each arm against the baseline, in nats per token with 95% intervals."""
    compared = [(arm.name, arm.versus_baseline) for arm in arms]
    parts = [_part(name, versus, study.smallest_difference) for name, versus in compared if versus is not None]
    parts += [f"{arm.name} {diverged(arm)}" for arm in arms if is_lost(arm)]
    said = f"against {study.baseline}, {'; '.join(parts)}." if parts else "there is nothing to compare yet."
    return f"So far ({done} of {runs} runs are done): {said}" if done < runs else said[0].upper() + said[1:]


def _part(name: str, versus: Versus, smallest: float | int) -> str:
    interval = versus.t_interval
    within = "" if interval is None else f" ({signed(interval[0])} to {signed(interval[1])})"
    difference = f"{signed(versus.mean)} nats{within}"
    match versus.verdict:
        case "better" | "worse" as word:
            return f"{name} is {word}: {difference}"
        case "no difference that matters":
            return f"{name} makes no difference larger than {smallest:g}: {difference}"
        case "undecided":
            needed = versus.seeds_to_decide
            return f"{name} is undecided: {difference}" + (f", about {needed} seeds would decide" if needed else "")
        case why:
            is_short = why is not None and why.startswith("diverged")
            return f"{name} {why}, {difference}" if is_short else f"{name} is {why}, {difference}"
