"""The answer of a study in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_jax.ablation.findings import ArmResults, StudyResults, Versus
from gpt_jax.ablation.schema import StudyRecord
from gpt_jax.ablation.secondary import sentences
from gpt_jax.pages.numbers import signed

NATS = "nats per token"


def verdict_sentence(arms: Sequence[ArmResults], study: StudyRecord, done: int, runs: int) -> str:
    """What `done` of the study's `runs` say on its endpoint: each arm against the baseline, with the intervals that
    hold for all arms and looks at once.
    """
    compared = [(arm.name, arm.versus_baseline) for arm in arms]
    parts = [_part(name, versus, study) for name, versus in compared if versus is not None]
    if not parts:
        said = "there is nothing to compare yet."
    else:
        said = f"against {study.baseline}, {'; '.join(parts)}."
        said = said if study.metric == StudyRecord.metric else f"by the {study.metric}, {said}"
    return f"So far ({done} of {runs} runs are done): {said}" if done < runs else said[0].upper() + said[1:]


def with_marks(results: StudyResults) -> str:
    """The verdict, and on lines of their own what the secondary endpoints say beside it, and each mark."""
    beside = [f"  secondary: {text}" for text in sentences(results)]
    return "\n".join([results.verdict or "No verdict yet.", *beside, *(f"  note: {mark}" for mark in results.marks)])


def _part(name: str, versus: Versus, study: StudyRecord) -> str:
    interval = versus.interval
    within = "" if interval is None else f" ({signed(interval[0])} to {signed(interval[1])})"
    unit = "nats" if study.unit == NATS else study.unit
    difference = "" if versus.mean is None else f": {signed(versus.mean)} {unit}{within}"
    reason = f", {versus.reason}" if versus.reason else ""
    match versus.verdict:
        case "better" | "worse" | "slightly better" | "slightly worse":
            return f"{name} is {versus.verdict}{reason}{difference}"
        case "no difference that matters":
            return f"{name} makes no difference larger than {study.smallest_difference:g}{reason}{difference}"
        case "undecided":
            needed = versus.seeds_to_decide
            return f"{name} is undecided{reason}{difference}" + (
                f", about {needed} seeds would decide" if needed else ""
            )
        case "fails more often" | "fails less often":
            return f"{name} {versus.verdict} ({versus.reason})"
        case _:
            return f"{name} is {versus.verdict}{reason}{difference}"
