"""Scores of attention heads in a report: what each arm has, and its differences from the baseline, paired by seed."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from gpt_jax.ablation import statistics as st
from gpt_jax.ablation.findings import StudyResults
from gpt_jax.pages.numbers import compact, p_value
from gpt_jax.pages.tables import plain_table

NOTE = (
    "Secondary: these scores decide nothing. Differences are the arm’s minus the baseline’s at the same seed; intervals"
    " and p, by Student’s t, are corrected over all rows (Bonferroni). Scores are of the last step, on fixed rows:"
    " means over all heads, and of induction, duplicate token, previous token and largest logit that of the head that"
    " has most."
)


@dataclass(frozen=True)
class Difference:
    """A score of an arm and of the baseline: their means over the `n` seeds that both have, the mean difference, and
    its interval and p, corrected over all rows. Both are None below two seeds, and the interval where all differences
    are equal.
    """

    arm: str
    score: str
    baseline: float
    mean: float
    difference: float
    n: int
    interval: st.Interval | None
    p: float | None


def differences(results: StudyResults) -> list[Difference]:
    """One for each arm but the baseline and each score that both have."""
    base = next((arm for arm in results.arms if arm.name == results.baseline), None)
    if base is None:
        return []
    pairs = []
    for arm in results.arms:
        for score in arm.inside if arm is not base else ():
            theirs, ours = base.inside.get(score, {}), arm.inside[score]
            if seeds := [seed for seed in ours if seed in theirs]:
                pairs.append((arm.name, score, [theirs[seed] for seed in seeds], [ours[seed] for seed in seeds]))
    return [_difference(*pair, count=len(pairs)) for pair in pairs]


def _difference(arm: str, score: str, theirs: list[float], ours: list[float], count: int) -> Difference:
    changes = [a - b for a, b in zip(ours, theirs, strict=True)]
    p = st.t_p(changes)
    return Difference(
        arm=arm,
        score=score,
        baseline=sum(theirs) / len(theirs),
        mean=sum(ours) / len(ours),
        difference=sum(changes) / len(changes),
        n=len(changes),
        interval=st.t_interval(changes, 1 - st.ALPHA / count),
        p=None if p is None else min(1.0, p * count),
    )


def table(results: StudyResults) -> tuple[list[str], list[list[str]]]:
    """Heads and rows."""
    rows = [
        [
            found.arm,
            found.score.replace("_", " "),
            compact(found.baseline),
            compact(found.mean),
            _signed(found.difference),
            "–" if found.interval is None else f"{_signed(found.interval[0])} to {_signed(found.interval[1])}",
            p_value(found.p),
            str(found.n),
        ]
        for found in differences(results)
    ]
    return ["arm", "score", "baseline", "arm’s", "Δ", "95% interval", "p", "seeds"], rows


def _signed(value: float) -> str:
    return f"+{compact(value)}" if value > 0 else compact(value)


def html(results: StudyResults) -> str:
    """The section; nothing where no run records scores."""
    heads, rows = table(results)
    return f'{plain_table(heads, rows, 2, "inside")}<p class="note">{escape(NOTE)}</p>' if rows else ""
