"""What a design can see: simulated studies, judged as real ones are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from gpt_jax.ablation import statistics as st
from gpt_jax.ablation.judging import Rule

STUDIES = 4_000
SEEDS = (3, 5, 8, 12, 16, 20, 30, 40)


@dataclass(frozen=True)
class Power:
    """What `seeds` seeds buy where paired differences have a known standard deviation: the `detectable` difference,
    which 80% of studies tell from 0 (None: not even 100 standard deviations), and how often equal arms come out as no
    different.
    """

    seeds: int
    detectable: float | None
    alike: float


class Outcomes(NamedTuple):
    """Shares of studies: the interval excludes 0; it lies within what does not matter; either."""

    different: float
    alike: float
    decided: float


def outcomes(difference: float, std: float, n: int, rule: Rule) -> Outcomes:
    """What comes of studies with n seeds for an arm whose paired differences are normal with this mean and standard
    deviation. Of the same simulated studies in each call.
    """
    rng = np.random.default_rng(0)
    mean = difference + std / math.sqrt(n) * rng.standard_normal(STUDIES)
    spread = std * np.sqrt(rng.chisquare(n - 1, STUDIES) / (n - 1))
    half = stats.t.isf(rule.level(n) / 2, n - 1) * spread / math.sqrt(n)
    within = np.abs(mean) + half <= rule.smallest_difference
    is_alike = within & (n >= st.seeds_without_failure(rule.rules_out_failures))
    is_different = np.abs(mean) > half
    return Outcomes(*(float(found.mean()) for found in (is_different, is_alike, is_different | is_alike)))


def power(std: float, n: int, rule: Rule) -> Power:
    """What n seeds buy."""
    low, high = 0.0, 100 * std
    if n < 2 or outcomes(high, std, n, rule).different < st.POWER:
        return Power(n, None, 0.0)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if outcomes(middle, std, n, rule).different >= st.POWER else (middle, high)
    return Power(n, high, outcomes(0.0, std, n, rule).alike)


def seeds_to_decide(difference: float, std: float, seen: int, rule: Rule) -> int | None:
    """The number of seeds at which 80% of studies decide, if the truth is this difference and standard deviation, as
    estimated from those `seen`; None if the most that the claim allows do not suffice.
    """
    for n in range(max(seen + 1, rule.planned), rule.most + 1):
        if outcomes(difference, std, n, rule).decided >= st.POWER:
            return n
    return None
