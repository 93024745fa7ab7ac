"""Secondary endpoints: what the arms lose or gain beside the endpoint that decides, under a correction of their own.

They are judged as the study's endpoint is: paired by seed, at the same level, over looks. One Bonferroni correction
covers all comparisons, every ranked arm on every secondary endpoint, also those that turn out not to be comparable:
which these are depends on the results. Holm's steps would reject more, but have no intervals that say what its p says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from gpt_jax.ablation.findings import ArmResults, Secondary, StudyResults, Versus
from gpt_jax.ablation.judging import Rule, compare
from gpt_jax.ablation.schema import Answered, SecondaryEndpoint, StudyRecord
from gpt_jax.ablation.values import SeedRuns
from gpt_jax.ablation.verdict import rule_of
from gpt_jax.pages.numbers import Writer

Answers = Mapping[str, Answered | None]  # by seed; None where it failed
LOST, GAINED, KEPT = "worse", "better", "no difference that matters"  # what a sentence says of a verdict
NOT_COMPARED = "not compared"
SHARES = Writer(3)


def answers_of(study: StudyRecord, seeds: Mapping[str, SeedRuns]) -> dict[str, dict[str, Answered | None]]:
    """The answers of an arm by secondary endpoint and seed, of the seeds whose runs have ended and are measured."""
    found: dict[str, dict[str, Answered | None]] = {}
    for endpoint in study.secondary:
        for seed, runs in seeds.items():
            known = {} if runs.own.measured is None else runs.own.measured.answers
            if runs.own.has_failed:
                found.setdefault(endpoint.name, {})[seed] = None
            elif runs.own.is_done and endpoint.name in known:
                found.setdefault(endpoint.name, {})[seed] = known[endpoint.name]
    return found


def comparisons(arms: Sequence[ArmResults], study: StudyRecord) -> int:
    """How many the correction covers."""
    return len(study.secondary) * sum(arm.is_ranked for arm in arms if arm.name != study.baseline)


def judged(arms: Sequence[ArmResults], study: StudyRecord) -> tuple[Secondary, ...]:
    """Every arm but the baseline on each secondary endpoint that both were asked about, endpoint by endpoint."""
    base = next(arm for arm in arms if arm.name == study.baseline)
    rule, found = rule_of(study, comparisons(arms, study)), []
    for endpoint in study.secondary:
        theirs = base.answers.get(endpoint.name, {})
        for arm in arms:
            ours = arm.answers.get(endpoint.name, {})
            if arm is not base and set(ours) & set(theirs):
                found.append(_judged(endpoint, arm, ours, theirs, rule))
    return tuple(found)


def _judged(endpoint: SecondaryEndpoint, arm: ArmResults, ours: Answers, theirs: Answers, rule: Rule) -> Secondary:
    seeds = [seed for seed in theirs if seed in ours]
    mine, others = [[side[seed] for seed in seeds] for side in (ours, theirs)]
    own = dataclasses.replace(rule, smallest_difference=endpoint.smallest_difference, lower_is_better=False)
    chances = [answer.chance for answer in (*mine, *others) if answer is not None]
    return Secondary(
        endpoint=endpoint.name,
        suite=endpoint.suite,
        arm=arm.name,
        value=_mean(mine),
        baseline=_mean(others),
        chance=float(np.mean(chances)) if chances else None,
        smallest_difference=endpoint.smallest_difference,
        versus=_versus(seeds, mine, others, arm.is_ranked, own),
    )


def _mean(answers: Sequence[Answered | None]) -> float | None:
    """None where a seed failed."""
    known = [answer.value for answer in answers if answer is not None]
    return float(np.mean(known)) if len(known) == len(answers) else None


def _versus(
    seeds: Sequence[str], ours: Sequence[Answered | None], theirs: Sequence[Answered | None], ranked: bool, rule: Rule
) -> Versus:
    """The difference and its verdict; where the accuracies can't be compared, the reason in place of a verdict."""
    known = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    if len(known) < len(seeds):
        return Versus(n=len(seeds), verdict=NOT_COMPARED, reason="seeds failed")
    a, b = [answer for answer, _ in known], [answer for _, answer in known]
    mine, others = ({seed: x.value for seed, x in zip(seeds, side, strict=True)} for side in (a, b))
    versus, reason = compare(mine, others, rule), None
    if all(answer.value == 1 for answer in (*a, *b)):
        reason = "both answer everything"
    elif _is_at_chance(a) and _is_at_chance(b):
        reason = "neither is above chance"
    if reason is not None:
        return Versus(mean=versus.mean, n=len(seeds), verdict=NOT_COMPARED, reason=reason)
    if not ranked:
        return dataclasses.replace(versus, p=None, verdict="not ranked", reason="it is not within the budget")
    return versus


def _is_at_chance(answers: Sequence[Answered]) -> bool:
    """Whether the lower end of the interval over questions is, on average over the seeds, not above chance."""
    return float(np.mean([answer.low - answer.chance for answer in answers])) <= 0


# ── in words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def sentences(results: StudyResults) -> list[str]:
    """A sentence on each arm whose secondary endpoints say something else than its verdict, such as "Equal loss, recall
    lost: …".
    """
    arms = {arm.name: arm for arm in results.arms}
    said = []
    for name in dict.fromkeys(found.arm for found in results.secondary):
        primary = arms[name].versus_baseline if name in arms else None
        own = [found for found in results.secondary if found.arm == name]
        if primary is not None and (text := _sentence(name, primary, own, results)):
            said.append(text)
    return said


def _sentence(name: str, primary: Versus, own: Sequence[Secondary], results: StudyResults) -> str:
    loss, lower = "loss" if "loss" in results.metric else results.metric, results.lower_is_better
    lost, gained, kept = ([found for found in own if found.versus.verdict == word] for word in (LOST, GAINED, KEPT))
    match primary.verdict:
        case "no difference that matters":
            head = f"equal {loss}"
            says = f"the {results.metric} of {name} is within ±{results.smallest_difference:g} of {results.baseline}’s"
            parts = [(lost, "lost"), (gained, "gained")]
        case "worse" | "slightly worse" | "better" | "slightly better":
            is_gain = primary.verdict.endswith("better")
            slightly = "slightly " if primary.verdict.startswith("slightly") else ""
            head = f"{slightly}{'lower' if lower == is_gain else 'higher'} {loss}"
            says = f"by the {results.metric}, {name} is {primary.verdict} than {results.baseline}"
            parts = [(lost, "lost") if is_gain else (gained, "gained"), (kept, "kept")]
        case "undecided":
            head, says = f"{loss} undecided", f"by the {results.metric}, {name} is undecided against {results.baseline}"
            parts = [(lost, "lost"), (gained, "gained")]
        case _:
            return ""
    parts = [(found, word) for found, word in parts if found]
    if not parts:
        return ""
    words = [head, *(f"{_suites(found)} {word}" for found, word in parts)]
    details = [_details(found, word) for found, word in parts]
    text = f"{', '.join(words)}: {says}{', and ' if words[1].endswith('kept') else ', but '}{'; and '.join(details)}."
    return text[0].upper() + text[1:]


def _suites(found: Sequence[Secondary]) -> str:
    names = list(dict.fromkeys(one.suite for one in found))
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _details(found: Sequence[Secondary], word: str) -> str:
    """The largest difference with its interval, and how many more there are."""
    most = max(found, key=lambda one: abs(one.versus.mean or 0.0))
    mean = most.versus.mean or 0.0
    way = f"{SHARES.plain(abs(mean))} {'lower' if mean < 0 else 'higher'}"
    if word == "kept":
        way = f"within ±{most.smallest_difference:g} of it"
    interval = "" if most.versus.interval is None else f"{SHARES.interval(most.versus.interval)}; "
    figures = f"{interval}{SHARES.plain(most.value)} against {SHARES.plain(most.baseline)}"
    more = f", as it is on {len(found) - 1} more" if len(found) > 1 else ""
    return f"its accuracy on {most.endpoint} is {way} ({figures}, chance {SHARES.plain(most.chance)}){more}"
