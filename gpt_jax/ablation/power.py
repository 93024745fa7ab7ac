"""What a design can see: simulated studies, judged as real ones are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from gpt_jax.ablation import statistics as st
from gpt_jax.ablation.judging import Rule

STUDIES = 4_000
SEEDS = (3, 5, 8, 12, 16, 20, 30, 40)


@dataclass(frozen=True)
class Power:
    """What `seeds` seeds buy where paired differences have a known standard deviation: the `detectable` difference,
    found in 80% of studies (None: not even 100 standard deviations), and how often arms that are alike come out as
    such.
    """

    seeds: int
    detectable: float | None
    alike: float


def outcomes(difference: float, std: float, n: int, rule: Rule) -> tuple[float, float]:
    """The shares of studies with n seeds in which an arm comes out as different, and as no different, if its paired
    differences are normal with this mean and standard deviation. Of the same simulated studies in each call.
    """
    rng = np.random.default_rng(0)
    mean = difference + std / math.sqrt(n) * rng.standard_normal(STUDIES)
    spread = std * np.sqrt(rng.chisquare(n - 1, STUDIES) / (n - 1))
    half = stats.t.isf(rule.level(n) / 2, n - 1) * spread / math.sqrt(n)
    within = np.abs(mean) + half <= rule.smallest_difference
    is_alike = within & (n >= st.seeds_without_failure(rule.rules_out_failures))
    is_different = (np.abs(mean) > half) & ~is_alike
    return float(is_different.mean()), float(is_alike.mean())


def power(std: float, n: int, rule: Rule) -> Power:
    """What n seeds buy."""
    low, high = 0.0, 100 * std
    if n < 2 or outcomes(high, std, n, rule)[0] < st.POWER:
        return Power(n, None, 0.0)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if outcomes(middle, std, n, rule)[0] >= st.POWER else (middle, high)
    return Power(n, high, outcomes(0.0, std, n, rule)[1])


def seeds_to_decide(difference: float, std: float, seen: int, rule: Rule) -> int | None:
    """The number of seeds at which 80% of studies decide, if the truth is this difference and standard deviation, as
    estimated from those `seen`; None if the most that the claim allows do not suffice.
    """
    for n in range(max(seen + 1, rule.planned), rule.most + 1):
        if sum(outcomes(difference, std, n, rule)) >= st.POWER:
            return n
    return None
