"""Differences beside those from the baseline: between two other arms, and interactions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from gpt_jax.ablation.findings import ArmResults, Contrast, Versus
from gpt_jax.ablation.judging import Rule, compare
from gpt_jax.ablation.schema import StudyRecord
from gpt_jax.ablation.verdict import Rows, is_of_failures, rule_of, versus_of

Values = Mapping[str, float | None]


def contrasts(
    arms: Sequence[ArmResults], study: StudyRecord, rows: Mapping[str, Rows] | None = None
) -> tuple[Contrast, ...]:
    """Every pair of ranked arms that are not the baseline, and every interaction of a product's arms.

    They are secondary: pairs are corrected over the pairs, interactions over the interactions, both over looks.
    """
    others = [arm for arm in arms if arm.name != study.baseline and arm.is_ranked and arm.values]
    pairs = [(a, b) for a, b in itertools.combinations(others, 2) if set(a.values) & set(b.values)]
    rule = rule_of(study, len(pairs))
    found = [
        Contrast(name=f"{b.name} − {a.name}", kind="pair", versus=versus_of(b, a, study, rule, rows or {}))
        for a, b in pairs
    ]
    return (*found, *_interactions(arms, study))


def _interactions(arms: Sequence[ArmResults], study: StudyRecord) -> list[Contrast]:
    """For each two changes of a product of ranked arms: what both do together beyond what each does alone, by seed."""
    if is_of_failures(study):
        return []
    ranked = [arm for arm in arms if arm.is_ranked]
    found = [(name, *sides) for name, sides in interactions(ranked, study.baseline).items()]
    rule = rule_of(study, len(found))
    return [
        Contrast(name=name, kind="interaction", versus=_interaction(together, apart, rule))
        for name, together, apart in found
        if set(together) & set(apart)
    ]


def _interaction(together: Values, apart: Values, rule: Rule) -> Versus:
    """Where a seed failed in one of the four arms, there is none: which pair of arms has more failures is no answer."""
    versus = compare(together, apart, rule)
    if versus.mean is not None:
        return versus
    return Versus(n=versus.n, verdict="not ranked", reason="seeds of the four arms failed")


def interactions(arms: Sequence[ArmResults], baseline: str) -> dict[str, tuple[Values, Values]]:
    """Name → (the sum of the arm with both changes and the one with neither, the sum of the two with one change), by
    seed; their difference is the interaction. Every arm's `parts` that differ from the baseline's in two places and
    have all four corners make one.
    """
    by_parts = {arm.parts: arm for arm in arms if arm.parts}
    neither = next((arm for arm in arms if arm.name == baseline), None)
    if neither is None or not neither.parts:
        return {}
    found = {}
    for parts, both in by_parts.items():
        changed = [i for i, (own, base) in enumerate(zip(parts, neither.parts, strict=True)) if own != base]
        if len(changed) != 2:
            continue
        first, second = ((*neither.parts[:i], parts[i], *neither.parts[i + 1 :]) for i in changed)
        if first in by_parts and second in by_parts:
            one, other = by_parts[first], by_parts[second]
            name = f"{parts[changed[0]]} × {parts[changed[1]]}"
            found[name] = (_sums(both.values, neither.values), _sums(one.values, other.values))
    return found


def _sums(a: Values, b: Values) -> Values:
    """The sum of two arms' values at the seeds that both have; None where either failed."""
    pairs = {seed: (a[seed], b[seed]) for seed in a if seed in b}
    return {seed: None if x is None or y is None else x + y for seed, (x, y) in pairs.items()}
