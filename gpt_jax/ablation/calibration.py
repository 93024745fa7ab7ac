"""Do the statistics keep their word? Simulated studies, whose truth is known, judged by the functions that judge real
ones.

Paired differences are normal unless a figure says otherwise: a seed's shared part drops out, and what is left of the
baseline's and an arm's noise is independent, so that differences from one baseline are correlated by a half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from gpt_jax.ablation import statistics as st
from gpt_jax.ablation.findings import ArmResults
from gpt_jax.ablation.judging import Rule, compare, decide, judge
from gpt_jax.ablation.power import outcomes, power, seeds_to_decide
from gpt_jax.ablation.schema import SecondaryEndpoint, StudyRecord
from gpt_jax.ablation.secondary import comparisons
from gpt_jax.ablation.verdict import rule_of

NOISE, MARGIN, FAILED = 0.007, 0.01, 2.5  # nats; a failed seed ends FAILED above the others
ALIKE = "no difference that matters"
DECIDED = ("better", "worse", "slightly better", "slightly worse")


@dataclass(frozen=True)
class Figure:
    """A share of simulated studies, what it must lie in, and the share by an older method, for comparison."""

    name: str
    asked: tuple[float, float]
    seen: float
    studies: int
    before: float | None = None

    @property
    def holds(self) -> bool:
        """Whether it lies in what is asked."""
        return self.asked[0] <= self.seen <= self.asked[1]


def calibrate(studies: int, progress: Callable[[Figure], None] = lambda figure: None) -> list[Figure]:
    """All figures, each of about `studies` simulated studies; `progress` is called with each."""
    found = []
    for simulate in SIMULATIONS:
        for figure in simulate(studies, np.random.default_rng(0)):
            progress(figure)
            found.append(figure)
    return found


def _arms(rng: np.random.Generator, arms: int, seeds: int, shift: float = 0.0) -> dict[str, dict[int, float]]:
    """Losses of a baseline and of arms that are worse by `shift`."""
    shared = 1.5 + rng.normal(0, NOISE, seeds)
    made = {"baseline": shared + rng.normal(0, NOISE, seeds)}
    made |= {f"arm {i}": shared + shift + rng.normal(0, NOISE, seeds) for i in range(arms)}
    return {name: dict(enumerate(values.tolist())) for name, values in made.items()}


def interval_of_one_arm(studies: int, rng: np.random.Generator) -> Iterator[Figure]:
    """Student's interval of one difference."""
    for n in (3, 5, 8, 20):
        intervals = (st.t_interval(rng.normal(0, NOISE, n)) for _ in range(5 * studies))
        covered = np.mean([i is not None and i[0] <= 0 <= i[1] for i in intervals])
        yield Figure(f"95% interval of one arm holds, n = {n}", (0.93, 0.97), float(covered), 5 * studies)


def intervals_of_all_arms(studies: int, rng: np.random.Generator) -> Iterator[Figure]:
    """Six arms at once: their intervals, and false verdicts."""
    for n in (3, 5, 8, 20):
        hold = alone = false = 0
        for _ in range(studies // 2):
            found = judge(_arms(rng, 6, n), baseline="baseline", smallest_difference=MARGIN, planned=n).values()
            hold += all(v.interval is not None and v.interval[0] <= 0 <= v.interval[1] for v in found)
            alone += all(v.t_interval is not None and v.t_interval[0] <= 0 <= v.t_interval[1] for v in found)
            false += any(v.verdict in DECIDED for v in found)
        total = studies // 2
        yield Figure(f"all intervals of six arms hold, n = {n}", (0.95, 1.0), hold / total, total, alone / total)
        yield Figure(f"false “better” or “worse” among six equal arms, n = {n}", (0.0, 0.05), false / total, total)


def looks(studies: int, rng: np.random.Generator) -> Iterator[Figure]:
    """A look after every seed from the first look to 40; and seeds added as the report advises, until it decides."""
    total = 20 * studies
    for first in (3, 5, 8):
        rule, d = Rule(MARGIN, planned=first), rng.normal(0, 1.4 * NOISE, (total, st.MOST_SEEDS))
        false, naive = np.zeros(total, bool), np.zeros(total, bool)
        for n in range(first, rule.most + 1):
            p = stats.ttest_1samp(d[:, :n], 0.0, axis=1).pvalue
            false |= p < rule.level(n)
            naive |= p < st.ALPHA
        name = f"false “better” or “worse” over looks at {first}, {first + 1}, … 40 seeds"
        yield Figure(name, (0.0, 0.05), float(false.mean()), total, float(naive.mean()))
    rule, total = Rule(MARGIN, planned=5), studies // 2
    false_at_end = sum(_follows_advice(rng.normal(0, 1.4 * NOISE, rule.most), rule) in DECIDED for _ in range(total))
    yield Figure("… if seeds are added as advised until it decides, from 5", (0.0, 0.05), false_at_end / total, total)


def _verdict(d: np.ndarray, rule: Rule) -> str:
    return decide(float(d.mean()), st.t_interval(d, 1 - rule.level(len(d))), len(d), rule)[0]


def _follows_advice(d: np.ndarray, rule: Rule) -> str:
    n = rule.planned
    while (verdict := _verdict(d[:n], rule)) == "undecided" and n < rule.most:
        n = seeds_to_decide(float(d[:n].mean()), float(d[:n].std(ddof=1)), n, rule) or rule.most
    return verdict


def equivalence(studies: int, rng: np.random.Generator) -> Iterator[Figure]:
    """Ten arms whose true difference is just what matters."""
    for n in (14, 20, 40):
        false = 0
        for _ in range(studies // 4):
            losses = _arms(rng, 10, n, shift=MARGIN)
            found = judge(losses, baseline="baseline", smallest_difference=MARGIN, planned=n)
            false += any(v.verdict == ALIKE for v in found.values())
        total = studies // 4
        yield Figure(f"false “no difference” among ten arms at the margin, n = {n}", (0.0, 0.05), false / total, total)


def failing_seeds(studies: int, rng: np.random.Generator) -> Iterator[Figure]:
    """An arm that fails in a fifth of its seeds, and so is worse by 0.5 nats. The failures end finitely and no rule
    declares them, unless the name says so.
    """
    for n in (3, 5, 8, 14, 20, 40):
        rule, total, false, plain = Rule(MARGIN, planned=n), 5 * studies, 0, 0
        for _ in range(total):
            d = rng.normal(0, NOISE / 4, n) + FAILED * (rng.random(n) < 0.2)
            false += _verdict(d, rule) == ALIKE
            t = st.t_interval(d)
            plain += t is not None and max(map(abs, t)) <= MARGIN
        name = f"false “no difference” where a fifth of the seeds fail, n = {n}"
        yield Figure(name, (0.0, 0.05), false / total, total, plain / total)
    rule, total, false = Rule(MARGIN, planned=20), studies // 2, 0
    for _ in range(total):
        losses = np.where(rng.random(20) < 0.2, np.nan, rng.normal(0, NOISE / 4, 20))
        found = compare(dict(enumerate(losses)), dict(enumerate(np.zeros(20))), rule)
        false += found.verdict == ALIKE or (found.mean is not None and bool(np.isnan(losses).any()))
    name = "false “no difference”, or a mean of survivors, where the failures are declared, n = 20"
    yield Figure(name, (0.0, 0.05), false / total, total)
    rule, total = Rule(MARGIN, planned=8), studies
    false = 0
    for _ in range(total):
        ours, theirs = (np.where(rng.random(8) < 0.2, np.nan, 1.0) for _ in range(2))
        false += "fails" in (compare(dict(enumerate(ours)), dict(enumerate(theirs)), rule).verdict or "")
    yield Figure("false “fails more often” where both fail in a fifth, n = 8", (0.0, 0.05), false / total, total)


def tuned(studies: int, rng: np.random.Generator) -> Iterator[Figure]:
    """Two equal arms, each at the best of five rates: chosen on a tuning seed with the verdict on fresh seeds, or, as
    `before`, the rates of one arm alone tuned on the seeds that decide.
    """
    n, rates, rule = 5, 5, Rule(MARGIN, planned=5)
    false = same = 0
    for _ in range(studies):
        tuning, runs = rng.normal(0, NOISE, (2, rates)), rng.normal(0, NOISE, (2, rates, n))
        d = runs[0, tuning[0].argmin()] - runs[1, tuning[1].argmin()]
        false += _verdict(d, rule) in DECIDED
        own = runs[0, runs[0].mean(axis=1).argmin()] - runs[1, 0]
        same += (st.t_p(own) or 0) < st.ALPHA
    yield Figure("false verdict after tuning, decided on fresh seeds, n = 5", (0.0, 0.05), false / studies, studies,
                 same / studies)  # fmt: skip


def text_like_this(studies: int, rng: np.random.Generator) -> Iterator[Figure]:
    """The interval over seeds and rows. The ratio is that of the standard deviation which the rows give to a mean
    difference to the one that a seed gives to it.
    """
    rows, total = 100, 2 * studies
    weights = np.full(rows, 64.0)
    for n in (3, 5, 8, 20):
        for ratio in (0.1, 0.5, 1.0, 2.0):
            covered = 0
            for _ in range(total):
                spread = ratio * np.sqrt(rows)
                x = rng.normal(size=(n, 1)) + spread * rng.normal(size=(1, rows)) + rng.normal(size=(n, rows))
                interval = st.population_interval(x * weights, weights)
                covered += interval is not None and interval[0] <= 0 <= interval[1]
            name = f"interval for text like this holds, n = {n}, rows to seeds {ratio:g}"
            yield Figure(name, (0.93, 0.97), covered / total, total)


ENDPOINTS = tuple(SecondaryEndpoint(f"recall at {length}", "recall", 0.05) for length in (32, 64, 128, 256))
QUESTIONS = 256


def secondary_endpoints(studies: int, rng: np.random.Generator) -> Iterator[Figure]:
    """Three equal arms on four secondary endpoints: a false difference anywhere among the twelve, at one look, and at
    looks after 5, 6, 7 and 8 seeds.
    """
    arms, total = [ArmResults(name=name) for name in ("baseline", "a", "b", "c")], 20 * studies
    for n, most in ((5, 5), (5, 8)):
        study = StudyRecord(
            question="?", smallest_difference=MARGIN, baseline="baseline", seeds=tuple(range(n)), planned_seeds=n,
            most_seeds=most, secondary=ENDPOINTS, arms=(), runs=(),
        )  # fmt: skip
        rule, shares = rule_of(study, comparisons(arms, study)), _shares(rng, total, len(arms), most)
        d, false, plain = shares[:, 1:] - shares[:, :1], np.zeros(total, bool), np.zeros(total, bool)
        for look in range(n, most + 1):
            mean, std = d[:, :, :look].mean(axis=2), d[:, :, :look].std(axis=2, ddof=1)
            t = np.abs(mean) * np.sqrt(look) / np.where(std > 0, std, np.inf)  # equal differences have no t-test
            p = 2 * stats.t.sf(t.max(axis=(1, 2)), look - 1)
            false |= p < rule.level(look)
            plain |= p < st.ALPHA
        when = f"n = {n}" if n == most else f"looks at {n} to {most} seeds"
        name = f"false difference of three equal arms on four secondary endpoints, {when}"
        yield Figure(name, (0.0, 0.05), float(false.mean()), total, float(plain.mean()))


def _shares(rng: np.random.Generator, studies: int, arms: int, seeds: int) -> np.ndarray:
    """Shares of right answers (studies, arms, seeds, endpoints); the skill varies by seed, by run, and by run and
    endpoint.
    """
    skill = 1 + rng.normal(0, 0.2, (studies, 1, seeds, 1)) + rng.normal(0, 0.2, (studies, arms, seeds, 1))
    skill = skill + rng.normal(0, 0.1, (studies, arms, seeds, len(ENDPOINTS)))
    return rng.binomial(QUESTIONS, 1 / (1 + np.exp(-skill))) / QUESTIONS


SIMULATIONS = (
    interval_of_one_arm, intervals_of_all_arms, looks, equivalence, failing_seeds, tuned, text_like_this,
    secondary_endpoints,
)  # fmt: skip


def costs() -> list[tuple[str, str]]:
    """What honest looks cost: the difference that is found in 80% of studies, in standard deviations of a paired
    difference, with one arm, and how many more seeds later looks need.
    """
    rows = []
    for n in (3, 5, 8, 12, 20, 40):
        once, growing = (power(1.0, n, Rule(1e-9, planned=n, most=most)).detectable for most in (n, 40))
        later = power(1.0, n, Rule(1e-9, planned=5)).detectable if n >= 5 else None
        texts = ["–" if value is None else f"{value:.2f}" for value in (once, growing, later)]
        rows.append((str(n), " | ".join(texts)))
    return rows


def wasted(n: int = 8) -> float:
    """The power of the first look at `n` seeds where one look of n seeds has 80%."""
    once = power(1.0, n, Rule(1e-9, planned=n, most=n)).detectable or 0.0
    return outcomes(once, 1.0, n, Rule(1e-9, planned=n)).different
