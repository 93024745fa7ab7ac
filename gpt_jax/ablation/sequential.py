"""Looking at a study more than once without fooling oneself.

A claim plans a first look after `first` seeds, and allows more seeds afterwards, one by one, up to `most`. At each
look the paired t-test gives a p. What is controlled is the smallest of them all: M = min over looks n of p(n) / w(n),
where w(n) is 1 at the first look and `LATER` at every later one, so that the first look, at which most studies end,
costs little. Under "no difference" the t statistics of all looks have one joint distribution, whatever the mean and
the spread of the losses, so that the distribution F of M can be simulated. F(p(n) / w(n)) is a p-value at every look,
however the number of looks is chosen, and `level` is the size that the plain test may have at a look (Lan & DeMets
1983, doi:10.1093/biomet/70.3.659, with a spending function that allows a look after every seed).
"""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy import stats

PATHS = 100_000
FEWEST = 2  # one seed has no t-test: where the claim plans one, the first look is that of two
LATER = 0.15  # a tenth to a fifth cost the first look little and leave later ones some power
CHUNKS = 10  # so that the simulation takes little memory
TAIL = 200  # paths below which the simulated F is replaced by a bound


def level(alpha: float, first: int, most: int, look: int) -> float:
    """The size of the plain t-test at the look after `look` seeds, such that the tests of all looks together reject in
    a share `alpha` of studies without a difference. Before the first look it is that of the first.
    """
    first = max(first, FEWEST)
    if first >= most:
        return alpha
    smallest, place = _smallest_p(first, most), alpha * PATHS
    if place > TAIL:
        # Below the quantile by three times its own error of simulation.
        return weight(first, look) * float(smallest[int(place - 3 * math.sqrt(place * (1 - alpha)))])
    return weight(first, look) * min(alpha / _weights(first, most).sum(), float(smallest[TAIL]))


def corrected(p: float, first: int, most: int, look: int) -> float:
    """p of the plain t-test at the look after `look` seeds, corrected for all looks that the claim allows."""
    first = max(first, FEWEST)
    if first >= most:
        return p
    x, smallest = p / weight(first, look), _smallest_p(first, most)
    below = int(np.searchsorted(smallest, x, side="right"))
    if below > TAIL:
        share = below / PATHS
        return min(1.0, share + 3 * math.sqrt(share * (1 - share) / PATHS))
    return min(float(_weights(first, most).sum() * x), TAIL / PATHS)


def union(p: float, first: int, most: int, look: int) -> float:
    """p of any test, whatever its distribution over looks, corrected by Bonferroni's bound with the same weights."""
    return min(1.0, p * float(_weights(first, max(first, most)).sum()) / weight(first, look))


def union_level(alpha: float, first: int, most: int, look: int) -> float:
    """The size that any test may have at a look, by Bonferroni's bound."""
    return alpha * weight(first, look) / float(_weights(first, max(first, most)).sum())


def weight(first: int, look: int) -> float:
    """w of the look after `look` seeds."""
    return 1.0 if look <= first else LATER


def _weights(first: int, most: int) -> np.ndarray:
    return np.array([weight(first, look) for look in range(first, most + 1)])


@functools.cache
def _smallest_p(first: int, most: int) -> np.ndarray:
    """M of `PATHS` simulated studies without a difference, in order."""
    rng, looks = np.random.default_rng(0), np.arange(first, most + 1)
    weights, found = _weights(first, most), []
    for _ in range(CHUNKS):
        x = rng.standard_normal((PATHS // CHUNKS, most))
        mean = np.cumsum(x, axis=1)[:, first - 1 :] / looks
        spread = np.cumsum(x * x, axis=1)[:, first - 1 :] - looks * mean**2
        t = np.abs(mean) * np.sqrt(looks * (looks - 1) / spread)
        found.append(np.min(2 * stats.t.sf(t, looks - 1) / weights, axis=1))
    return np.sort(np.concatenate(found))
