"""What a few paired runs can say about an arm: estimates, intervals and p-values.

A difference is arm − baseline at the same seed, on the study's endpoint. Tests are two-sided, intervals hold in 95% of
samples unless a level is given, and `judge` turns them into verdicts. docs/statistics.md has the figures of
`python -m experiments.calibrate`, which simulates studies through these functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 40  # to which a claim may grow
FAILURES_RULED_OUT = 0.2
OUTLIER = 0.01  # size of the test that names outliers

Interval = tuple[float, float]
Numbers = Sequence[float | int] | np.ndarray


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n − 1) and 95% t interval of n values; None where n is too small for it."""

    mean: float | None
    std: float | None
    n: int
    interval: Interval | None


def summarize(values: Numbers) -> Summary:
    """Summary of the values of an arm, all of which must be finite."""
    x = np.asarray(values, np.float64)
    if len(x) == 0:
        return Summary(None, None, 0, None)
    std = float(x.std(ddof=1)) if len(x) > 1 else None
    return Summary(float(x.mean()), std, len(x), t_interval(x))


def _is_constant(x: np.ndarray) -> bool:
    return bool(np.ptp(x) == 0)


def t_interval(x: Numbers, level: float = 1 - ALPHA) -> Interval | None:
    """Student's interval of the mean; None for fewer than two numbers, and where all are equal, as rounded ones may be:
    their spread is not known then.
    """
    x = np.asarray(x, np.float64)
    if len(x) < 2 or _is_constant(x):
        return None
    half = float(stats.t.isf((1 - level) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return float(x.mean()) - half, float(x.mean()) + half


def t_p(differences: Numbers) -> float | None:
    """p of the paired t-test that the mean difference is 0; None for fewer than two. Where all differences are equal,
    it is that of the sign test.
    """
    d = np.asarray(differences, np.float64)
    if len(d) < 2:
        return None
    if _is_constant(d):
        return 1.0 if d[0] == 0 else 2.0 ** (1 - len(d))
    return float(2 * stats.t.sf(abs(d.mean()) * math.sqrt(len(d)) / d.std(ddof=1), len(d) - 1))


def hodges_lehmann(x: Numbers, level: float = 1 - ALPHA) -> tuple[float, Interval | None, float | None]:
    """The median of the means of all pairs (each with itself too), its exact interval from Wilcoxon's signed-rank
    distribution, and the share of samples in which that holds for any symmetric distribution (Hodges & Lehmann 1963,
    doi:10.1214/aoms/1177704172). Below 6 numbers no interval reaches 95%: the widest is given, with its own share.
    """
    x = np.asarray(x, np.float64)
    first, second = np.triu_indices(len(x))
    means = np.sort((x[first] + x[second]) / 2)
    if len(x) < 2:
        return float(np.median(means)), None, None
    ways = np.ones(1)
    for rank in range(1, len(x) + 1):  # the number of subsets of the ranks 1 … n with each sum
        ways = np.convolve(ways, np.r_[1.0, np.zeros(rank - 1), 1.0])
    below = np.cumsum(ways) / ways.sum()
    cut = max(1, int(np.searchsorted(below, (1 - level) / 2, side="right")))
    return float(np.median(means)), (float(means[cut - 1]), float(means[-cut])), float(1 - 2 * below[cut - 1])


def outliers(x: Numbers) -> list[int]:
    """The places of outliers, by the generalized extreme Studentized deviate test with up to a quarter of the numbers
    (Rosner 1983, doi:10.1080/00401706.1983.10487848), of size 1% for normal ones. None below 4 numbers.
    """
    x = np.asarray(x, np.float64)
    left, order, found = list(range(len(x))), [], 0
    for i in range(1, max(1, len(x) // 4) + 1 if len(x) > 3 else 1):
        here, n = x[left], len(left)
        if _is_constant(here):
            break
        away = np.abs(here - here.mean()) / here.std(ddof=1)
        t = stats.t.isf(OUTLIER / (2 * n), n - 2)
        order.append(left.pop(int(away.argmax())))
        if away.max() > (n - 1) * t / math.sqrt((n - 2 + t * t) * n):
            found = i
    return order[:found]


def correlation(ours: Numbers, theirs: Numbers) -> float | None:
    """Pearson's correlation of the pairs, which is what pairing gains; None for fewer than three or a constant side."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if len(ours) < 3 or _is_constant(ours) or _is_constant(theirs):
        return None
    return float(np.corrcoef(ours, theirs)[0, 1])


def population_interval(sums: np.ndarray, weights: np.ndarray, level: float = 1 - ALPHA) -> Interval | None:
    """The interval of the mean difference for text like this one, over seeds and rows together.

    Args:
      sums: Σ over the targets of a row of the difference in nats (or what else the endpoint sums), (seeds, rows).
      weights: the targets of each row, (rows,).

    Rows and seeds are two crossed random factors, and a row is one draw of text. Their variances come from an analysis
    of variance. The quantile is a third of Satterthwaite’s (1946, doi:10.2307/3002019), whose interval undercovers
    three seeds, and two thirds of Cochran’s (1964, doi:10.2307/2283000), which overcovers them. None for fewer than two
    seeds or rows.
    """
    kept = weights > 0
    sums, weights = sums[:, kept].astype(np.float64), weights[kept].astype(np.float64)
    n, rows = sums.shape
    if n < 2 or rows < 2:
        return None
    mean = float(sums.sum() / (n * weights.sum()))
    x = (sums - mean * weights) * (rows / weights.sum())  # a ratio's rows, made linear; their mean is 0
    by_seed, by_row = x.mean(axis=1), x.mean(axis=0)
    free = (n - 1, rows - 1)
    rest = float(np.square(x - by_seed[:, None] - by_row).sum()) / (free[0] * free[1] * n * rows)
    of_seeds = float(by_seed.var(ddof=1)) / n
    of_rows = max(0.0, float(by_row.var(ddof=1)) / rows - rest)
    total = of_seeds + of_rows
    if total == 0:
        return mean, mean
    degrees = total**2 / (of_seeds**2 / free[0] + (of_rows + rest) ** 2 / free[1] + rest**2 / (free[0] * free[1]))
    tail = (1 - level) / 2
    satterthwaite = stats.t.isf(tail, degrees)
    cochran = (of_seeds * stats.t.isf(tail, free[0]) + of_rows * stats.t.isf(tail, free[1])) / total
    half = float(satterthwaite + 2 * cochran) / 3 * math.sqrt(total)
    return mean - half, mean + half


# ── runs that fail ───────────────────────────────────────────────────────────────────────────────────────────────────


def rate_interval(failed: int, n: int, level: float = 1 - ALPHA) -> Interval | None:
    """The exact interval of a failure rate (Clopper & Pearson 1934); None for no runs."""
    if n == 0:
        return None
    found = stats.binomtest(failed, n).proportion_ci(level, "exact")
    return float(found.low), float(found.high)


def failures_p(ours: int, theirs: int, n: int) -> float:
    """p that two arms of n seeds each, of which so many failed, fail equally often (Fisher's exact test)."""
    return float(stats.fisher_exact([[ours, n - ours], [theirs, n - theirs]]).pvalue)


def rate_difference_interval(ours: int, theirs: int, n: int, level: float = 1 - ALPHA) -> Interval:
    """An interval of the difference of two failure rates that holds at least its level: from the exact intervals of
    both, each at half of the error.
    """
    a, b = rate_interval(ours, n, (1 + level) / 2), rate_interval(theirs, n, (1 + level) / 2)
    return (-1.0, 1.0) if a is None or b is None else (a[0] - b[1], a[1] - b[0])


def seeds_without_failure(rate: float) -> int:
    """How many seeds without a failure rule out a failure rate of `rate` at 5%; at least 5."""
    return max(5, math.ceil(math.log(ALPHA) / math.log1p(-rate)))


def unseen_rate(n: int) -> float:
    """The largest failure rate that n seeds without a failure do not rule out at 5%."""
    return float(1 - ALPHA ** (1 / n)) if n else 1.0


# ── learning rates ───────────────────────────────────────────────────────────────────────────────────────────────────


def learning_rate_sensitivity(losses: Mapping[float, Sequence[float | None]], initial: float | int) -> float | None:
    """Mean over the grid of min(loss, initial loss) − best loss, in nats (Wortsman et al. 2023, arXiv:2309.14322). The
    loss at a rate is the mean over its runs, one that diverged (None) having the initial loss. None for one rate.
    """
    if len(losses) < 2:
        return None
    means = [at_rate(runs, initial) for runs in losses.values()]
    return float(np.mean([min(mean, initial) for mean in means]) - min(means))


def at_rate(losses: Sequence[float | int | None], initial: float | int) -> float:
    """The mean loss at one learning rate, a diverged run (None) having the initial loss."""
    return float(np.mean([initial if loss is None or not math.isfinite(loss) else loss for loss in losses]))
