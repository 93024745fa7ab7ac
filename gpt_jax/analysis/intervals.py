"""Accuracy with an interval that holds near 0 and 1 and knows that the answers of one row are not independent."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import beta, t

CONFIDENCE = 0.95
FEW = 10  # rows' worth of wrong (or right) answers, below which rows cannot show how much they vary


class Accuracy(NamedTuple):
    """A share of right answers, and the ends of its 95% interval."""

    value: float
    low: float
    high: float


def accuracy(hits: Float[np.ndarray, " R"], answers: Float[np.ndarray, " R"]) -> Accuracy:
    """The accuracy over R rows with `answers` answers each, of which `hits` are right.

    The interval is the exact one of Clopper and Pearson for an effective number of answers: as many independent answers
    as would have the variance that rows show, with the t quantiles of the few rows that it is estimated from (Korn and
    Graubard 1998, Survey Methodology 24). Near 0 and 1 rows show too little variance, or none. There the effective
    number falls to that of the rows, smoothly, so that a right answer more never lowers the bounds of rows that differ.

    Raises:
      ValueError: there are no answers.
    """
    total = answers.sum()
    if total == 0:
        raise ValueError("there are no answers")
    rows = len(answers)
    share = float(hits.sum() / total)
    residuals = hits - share * answers
    spread = np.square(residuals).sum()
    tail, few = (1 - CONFIDENCE) / 2, min(share, 1 - share) * rows
    effective = float(min(rows, total))
    if spread > 1e-6:  # less is rounding: one answer of one row moves it by about 1
        variance = rows / (rows - 1) * spread / total**2
        widened = (t.ppf(tail, max(total - 1, 1)) / t.ppf(tail, rows - 1)) ** 2
        most = total if few >= FEW else rows / (1 - few / FEW)
        effective = min(share * (1 - share) / variance * widened, total, most)
    right = share * effective
    low = 0.0 if share == 0 else float(beta.ppf(tail, right, effective - right + 1))
    high = 1.0 if share == 1 else float(beta.ppf(1 - tail, right + 1, effective - right))
    return Accuracy(share, low, high)
