"""Verdicts from numbers alone: {arm: {seed: loss}} in, differences, intervals, p-values and verdicts out.

    judge({"mha": {0: 1.51, 1: 1.53, …}, "mqa": {0: 1.53, …}}, baseline="mha", smallest_difference=0.01)

The numbers may come from any codebase. The report of a study is made by the same function.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_jax.ablation import sequential
from gpt_jax.ablation import statistics as st
from gpt_jax.ablation.findings import Failures, Versus
from gpt_jax.config.errors import UserError, nearest

EQUAL = 1e-12  # of the values: what the rounding of a difference of floats leaves

Values = Mapping[Any, float | int | None]


@dataclass(frozen=True)
class Rule:
    """What a difference is judged by: the smallest that matters, the number of `comparisons` that hold together, the
    seeds of the first look and the most that may follow, which sign is a gain, and the failure rate that "no
    difference" must rule out.
    """

    smallest_difference: float
    comparisons: int = 1
    planned: int = 2
    most: int = st.MOST_SEEDS
    lower_is_better: bool = True
    rules_out_failures: float = st.FAILURES_RULED_OUT

    def level(self, look: int) -> float:
        """The size of a plain t-test at the look after `look` seeds that keeps all comparisons and looks together at
        5%. Bonferroni's bound holds however the arms depend on each other.
        """
        return sequential.level(st.ALPHA / self.comparisons, self.planned, self.most, look)

    def corrected(self, p: float, look: int) -> float:
        """p of a plain t-test, corrected for comparisons and looks."""
        return min(1.0, self.comparisons * sequential.corrected(p, self.planned, self.most, look))


def judge(
    losses: Mapping[str, Values],
    *,
    baseline: str,
    smallest_difference: float,
    planned: int | None = None,
    most: int = st.MOST_SEEDS,
    lower_is_better: bool = True,
    rules_out_failures: float = st.FAILURES_RULED_OUT,
) -> dict[str, Versus]:
    """Judges every arm but the baseline by its differences from the baseline at the same seed.

    Args:
      losses: arm → seed → number, NaN or None for a seed that failed. Seeds that one side lacks are left out.
      baseline: the arm that the others are compared with.
      smallest_difference: the smallest difference that matters, in the unit of the numbers.
      planned: the seeds of the first look; None: those that the baseline has. A study that has fewer decides nothing.
      most: the largest number of seeds that the study may still grow to; `planned` says that none will be added.
      lower_is_better: whether a smaller number is the better one.
      rules_out_failures: the failure rate that "no difference that matters" must rule out at 5%.

    Raises:
      UserError: the baseline is missing, an arm shares no seed with it, or there are more seeds than `most`.
    """
    if baseline not in losses:
        raise UserError(f'the baseline "{baseline}" is not among the arms{nearest(baseline, losses)}')
    if not (smallest_difference > 0 and math.isfinite(smallest_difference)):
        raise UserError(f"the smallest difference that matters must be positive and finite, not {smallest_difference}")
    theirs, others = losses[baseline], {name: values for name, values in losses.items() if name != baseline}
    planned = max(2, len(theirs)) if planned is None else planned
    if len(theirs) > max(most, planned):
        raise UserError(f"the baseline has {len(theirs)} seeds and the claim allows {most}: raise `most` beforehand")
    rule = Rule(
        smallest_difference, max(1, len(others)), planned, max(most, planned), lower_is_better, rules_out_failures
    )
    for name, values in others.items():
        if not set(values) & set(theirs):
            raise UserError(f'the arm "{name}" shares no seed with "{baseline}": pairs need the same seeds')
    return {name: compare(values, theirs, rule) for name, values in others.items()}


def compare(ours: Values, theirs: Values, rule: Rule) -> Versus:
    """One arm against another at the seeds that both have, of which there must be one."""
    seeds = [seed for seed in theirs if seed in ours]
    a, b = _numbers(ours, seeds), _numbers(theirs, seeds)
    n, has_failures = len(seeds), not (np.isfinite(a).all() and np.isfinite(b).all())
    if has_failures:
        return _with_failures(~np.isfinite(a), ~np.isfinite(b), rule)
    d = _differences(a, b)
    level, p = rule.level(n), st.t_p(d)
    is_certain = p is not None and np.ptp(d) == 0 and p <= level  # equal differences, and many of one sign
    interval = (float(d[0]), float(d[0])) if is_certain else st.t_interval(d, 1 - level)
    verdict, reason = decide(float(d.mean()), interval, n, rule)
    robust, robust_interval, robust_level = st.hodges_lehmann(d)
    return Versus(
        mean=float(d.mean()),
        std=float(d.std(ddof=1)) if n > 1 else None,
        n=n,
        interval=interval,
        t_interval=st.t_interval(d),
        robust=robust,
        robust_interval=robust_interval,
        robust_level=robust_level,
        t_p=p,
        p=None if p is None or n < rule.planned else rule.corrected(p, n),
        correlation=st.correlation(a, b),
        outliers=tuple(str(seeds[i]) for i in sorted(st.outliers(d))),
        failures=Failures(failed=0, n=n, interval=st.rate_interval(0, n), p=1.0),
        verdict=verdict,
        reason=reason,
    )


def _numbers(values: Values, seeds: list[Any]) -> np.ndarray:
    return np.array([math.nan if values[seed] is None else values[seed] for seed in seeds], np.float64)


def _differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a − b, made equal where they are so but for the rounding of floats."""
    d, error = a - b, EQUAL * max(np.abs(a).max(), np.abs(b).max())
    if np.ptp(d) > error:
        return d
    return np.full(len(d), 0.0 if abs(d.mean()) <= error else d.mean())


def decide(mean: float, interval: st.Interval | None, n: int, rule: Rule) -> tuple[str, str | None]:
    """The verdict on a mean difference without failures and, where it is not plain, the reason in words."""
    if n < rule.planned:
        return "undecided", f"{n} of {rule.planned} planned seeds done"
    if interval is None:
        return "undecided", "one seed has no interval" if n == 1 else "all differences are equal: is the value rounded?"
    smallest, gain = rule.smallest_difference, (mean < 0) == rule.lower_is_better
    word, is_significant = "better" if gain else "worse", not interval[0] <= 0 <= interval[1]
    is_within, needed = max(map(abs, interval)) <= smallest, st.seeds_without_failure(rule.rules_out_failures)
    if is_within and n >= needed:
        return "no difference that matters", f"{word}, by less than matters" if is_significant else None
    if is_significant:
        return (word, None) if abs(mean) >= smallest else (f"slightly {word}", "by less than matters, as estimated")
    if is_within:
        rate = f"{rule.rules_out_failures:.0%}"
        return "undecided", f"no difference so far, but it takes {needed} seeds to rule out that {rate} of them fail"
    return "undecided", None


def _with_failures(ours: np.ndarray, theirs: np.ndarray, rule: Rule) -> Versus:
    """Where seeds failed on either side there is no mean difference, and only the failures are compared. Rates that are
    alike make no equal arms: the margin is in the unit of the values, and the values of failed seeds are not known.
    """
    found = compare_failures(int(ours.sum()), int(theirs.sum()), len(ours), rule)
    is_open = found.verdict in ("undecided", "no difference that matters")
    verdict = "not ranked" if is_open and len(ours) >= rule.planned else found.verdict
    return dataclasses.replace(found, mean=None, interval=None, verdict=verdict)


def compare_failures(ours: int, theirs: int, n: int, rule: Rule) -> Versus:
    """The failure rates of two arms, of whose n seeds so many failed: difference, interval, exact test and verdict."""
    plain = st.failures_p(ours, theirs, n)
    p = min(1.0, rule.comparisons * sequential.union(plain, rule.planned, rule.most, n))
    size = sequential.union_level(st.ALPHA / rule.comparisons, rule.planned, rule.most, n)
    interval = st.rate_difference_interval(ours, theirs, n, 1 - size)
    verdict, reason = "undecided", f"{ours} of {n} seeds failed, and {theirs} of the baseline’s"
    if n < rule.planned:
        reason = f"{n} of {rule.planned} planned seeds done; {reason}"
    elif p < st.ALPHA:
        verdict = "fails more often" if ours > theirs else "fails less often"
    elif max(map(abs, interval)) <= rule.smallest_difference:
        verdict = "no difference that matters"
    return Versus(
        mean=(ours - theirs) / n,
        n=n,
        interval=interval,
        p=p if n >= rule.planned else None,
        t_p=plain,
        failures=Failures(failed=ours, n=n, interval=st.rate_interval(ours, n), p=plain),
        verdict=verdict,
        reason=reason,
    )
