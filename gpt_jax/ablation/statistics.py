"""What a few paired runs can say about an arm: intervals, p-values, and a verdict in words.

Losses are in nats per token, lower is better, and a difference is arm − baseline at the same seed. All tests are
two-sided unless their name says otherwise; intervals hold 95%.
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
EXACT_FLIPS = 2**14  # up to 14 pairs every pattern of signs is tried
RESAMPLES = 9_999

Interval = tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n − 1) and 95% t interval of n losses; None where n is too small for it."""

    mean: float | None
    std: float | None
    n: int
    interval: Interval | None


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline by paired differences: their mean, intervals by t and by BCa, p by t, p by sign
    flips. Where all differences are equal, the intervals are points and p is 1 for no difference, else 0.
    """

    mean: float
    std: float | None
    n: int
    t_interval: Interval | None
    bca_interval: Interval | None
    t_p: float | None
    sign_flip_p: float


def summarize(losses: Sequence[float | int]) -> Summary:
    """Summary of the finite losses of an arm."""
    x = np.asarray(losses, np.float64)
    x = x[np.isfinite(x)]
    if len(x) == 0:
        return Summary(None, None, 0, None)
    std = float(x.std(ddof=1)) if len(x) > 1 else None
    return Summary(float(x.mean()), std, len(x), t_interval(x))


def compare(arm: Sequence[float | int], baseline: Sequence[float | int]) -> Comparison:
    """Compares losses of the same seeds in the same order.

    Raises:
      ValueError: the numbers of losses differ, or there are none.
    """
    if len(arm) != len(baseline) or len(arm) == 0:
        raise ValueError(f"losses are compared in pairs of one seed each, and there are {len(arm)} and {len(baseline)}")
    d = np.asarray(arm, np.float64) - np.asarray(baseline, np.float64)
    std = float(d.std(ddof=1)) if len(d) > 1 else None
    return Comparison(float(d.mean()), std, len(d), t_interval(d), bca_interval(d), t_p(d), sign_flip_p(d))


def _is_constant(x: np.ndarray) -> bool:
    return bool(np.ptp(x) == 0)


def t_interval(x: Sequence[float | int] | np.ndarray, level: float = 1 - ALPHA) -> Interval | None:
    """Student's interval of the mean; None for fewer than two numbers.

    Of 20,000 simulated normal samples it covered the mean in 95% at n = 5, 8 and 20.
    """
    x = np.asarray(x, np.float64)
    if len(x) < 2:
        return None
    if _is_constant(x):
        return float(x[0]), float(x[0])
    half = float(stats.t.ppf(0.5 + level / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return float(x.mean()) - half, float(x.mean()) + half


def bca_interval(x: Sequence[float | int] | np.ndarray, level: float = 1 - ALPHA) -> Interval | None:
    """Bias-corrected and accelerated bootstrap interval of the mean (Efron 1987, doi:10.1080/01621459.1987.10478410),
    from a fixed seed; None for fewer than two numbers.

    It undercovers small samples: of 2,000 simulated normal ones the 95% interval covered the mean in 84%
    at n = 5, 89% at 8 and 93% at 20.
    """
    x = np.asarray(x, np.float64)
    if len(x) < 2:
        return None
    if _is_constant(x):
        return float(x[0]), float(x[0])
    options = {"confidence_level": level, "n_resamples": RESAMPLES, "method": "BCa", "vectorized": True}
    found = stats.bootstrap((x,), np.mean, rng=np.random.default_rng(0), **options).confidence_interval
    return float(found.low), float(found.high)


def t_p(differences: Sequence[float | int] | np.ndarray) -> float | None:
    """p of the paired t-test that the mean difference is 0; None for fewer than two."""
    d = np.asarray(differences, np.float64)
    if len(d) < 2:
        return None
    if _is_constant(d):
        return 1.0 if d[0] == 0 else 0.0
    return float(stats.ttest_1samp(d, 0.0).pvalue)


def sign_flip_p(differences: Sequence[float | int] | np.ndarray) -> float:
    """p of the sign-flip test: how often random signs give a mean at least as far from 0.

    Exact up to 14 differences, so never below 2 / 2ⁿ; beyond, by 9,999 random patterns from a fixed seed.
    """
    d = np.asarray(differences, np.float64)
    if len(d) == 1 or not d.any():
        return 1.0
    resamples = math.inf if 2 ** len(d) <= EXACT_FLIPS else RESAMPLES
    options = {"permutation_type": "samples", "vectorized": True, "n_resamples": resamples}
    return float(stats.permutation_test((d,), np.mean, rng=np.random.default_rng(0), **options).pvalue)


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """p-values corrected for their number, step-down (Holm 1979). None, a test that could not be made, stays None and
    is not counted.
    """
    known = sorted((p, name) for name, p in p_values.items() if p is not None)
    corrected: dict[str, float | None] = dict.fromkeys(p_values)
    largest = 0.0
    for rank, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[name] = largest
    return corrected


def seeds_to_decide(std: float | int, difference: float | int, alpha: float = ALPHA, power: float = POWER) -> int:
    """Pairs needed to see a mean difference of `difference` where differences have the standard deviation `std`:
    n ≈ (z_{α/2} + z_β)² · σ² / Δ², at least 2.
    """
    if difference <= 0:
        raise ValueError(f"the smallest difference that matters must be positive, not {difference}")
    z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)
    return max(2, math.ceil((z * std / difference) ** 2))


def verdict(comparison: Comparison, p_holm: float | None, smallest: float | int) -> str:
    """ "better", "worse", "no difference that matters" or "undecided".

    The third wherever the 95% t interval lies within ±`smallest`, significant or not; the first two by Holm's p < 0.05.
    """
    interval = comparison.t_interval
    if interval is None or p_holm is None:
        return "undecided"
    if max(abs(interval[0]), abs(interval[1])) <= smallest:
        return "no difference that matters"
    if p_holm < ALPHA:
        return "better" if comparison.mean < 0 else "worse"
    return "undecided"


def p_reaches(losses: Sequence[float | int], target: float | int) -> float:
    """One-sided p of the t-test that the mean loss is not below `target`: below 0.01 the target counts as reached.

    Raises:
      ValueError: fewer than two losses.
    """
    if len(losses) < 2:
        raise ValueError("whether a target is reached needs two losses at least: run more seeds")
    x = np.asarray(losses, np.float64)
    if _is_constant(x):
        return 0.0 if x[0] < target else 1.0
    return float(stats.ttest_1samp(x, target, alternative="less").pvalue)


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
