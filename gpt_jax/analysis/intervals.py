"""Accuracy with an interval that holds near 0 and 1 and knows that the answers of one row are not independent."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import beta

CONFIDENCE = 0.95


class Accuracy(NamedTuple):
    """A share of right answers, and the ends of its 95% interval."""

    value: float
    low: float
    high: float


def accuracy(hits: Float[np.ndarray, " R"], answers: Float[np.ndarray, " R"]) -> Accuracy:
    """The accuracy over R rows with `answers` answers each, of which `hits` are right.

    The interval is the exact one of Clopper and Pearson for an effective number of answers: as many independent answers
    as would have the variance that rows show (Korn and Graubard 1998, Survey Methodology 24). Where rows show none,
    because all answers are right or all wrong, each row counts as one.

    Raises:
      ValueError: there are no answers.
    """
    total = answers.sum()
    if total == 0:
        raise ValueError("there are no answers")
    rows = len(answers)
    share = float(hits.sum() / total)
    residuals = hits - share * answers
    variance = rows / max(rows - 1, 1) * np.square(residuals).sum() / total**2
    effective = min(share * (1 - share) / variance, total) if variance > 0 else float(min(rows, total))
    right, tail = share * effective, (1 - CONFIDENCE) / 2
    low = 0.0 if share == 0 else float(beta.ppf(tail, right, effective - right + 1))
    high = 1.0 if share == 1 else float(beta.ppf(1 - tail, right + 1, effective - right))
    return Accuracy(share, low, high)
