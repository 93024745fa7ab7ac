"""Measures a model on suites of questions with known answers: accuracy with an interval, beside the level of chance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm

from gpt_jax.analysis.intervals import CONFIDENCE, accuracy
from gpt_jax.analysis.scoring import Scorer
from gpt_jax.data import Batch, Data, open_data
from gpt_jax.data.prompts import CHOICES, Haystack, questions
from gpt_jax.data.suites import Point

ANY_LENGTH = 10**9
BINS = 8  # of positions


@dataclass(frozen=True)
class Result:
    """One point of a curve.

    `measure` is "accuracy" (a share of answers) or "loss" (nats per token); `low` and `high` are the ends of the 95%
    interval of `value`; `chance` is the accuracy of guessing (None for a loss); `rows` is the number of rows or
    questions, and `trained` says that the run was trained on rows of at least this length.
    """

    suite: str
    kind: str
    length: int
    size: int | None
    measure: str
    value: float
    low: float
    high: float
    chance: float | None
    rows: int
    trained: bool


def measure_task(score: Scorer, point: Point, trained_length: int) -> Result:
    """The accuracy on the rows of a task."""
    data = open_data(point.task, ANY_LENGTH, 0, progress=False)
    terms = [score.terms(batch) for batch in data.validation(score.rows)]
    hits, answers = (np.concatenate([term[i].sum(axis=1) for term in terms])[: data.validation_rows] for i in (1, 2))
    found = accuracy(hits.astype(np.float64), answers.astype(np.float64))
    within = point.length <= trained_length
    return Result(
        point.suite, point.kind, point.length, point.size, "accuracy", *found, point.chance, len(hits), within
    )


def measure_questions(
    score: Scorer, hay: Haystack, suite: str, kind: str, length: int, count: int, trained_length: int
) -> Result | None:
    """The accuracy of choosing the most probable of several answers; None if a question does not fit `length`."""
    asked = questions(hay, suite, kind, length, count)
    if not asked:
        return None
    scores = score([(question.context, choice) for question in asked for choice in question.choices])
    logs = np.array([s.loglikelihood for s in scores]).reshape(len(asked), CHOICES)
    right = (logs.argmax(axis=1) == [question.answer for question in asked]).astype(np.float64)
    found = accuracy(right, np.ones(len(asked)))
    return Result(suite, kind, length, None, "accuracy", *found, 1 / CHOICES, len(asked), length <= trained_length)


def measure_repeats(
    score: Scorer, ids: np.ndarray, suite: str, length: int, count: int, trained_length: int, seed: int = 0
) -> Result:
    """The accuracy on the second half of rows that repeat their first half: a passage of the held-out text (`copy`), or
    tokens drawn from it at random (`induction`). Guessing is drawing one of its different tokens.
    """
    rng, half = np.random.default_rng(seed), max(length // 2, 1)
    rows = np.empty((-(-count // score.rows) * score.rows, 2 * half), np.int32)
    for row in rows:
        begin = int(rng.integers(0, max(len(ids) - half, 1)))
        first = np.resize(ids[begin : begin + half], half) if suite == "copy" else rng.choice(ids, half)
        row[:] = np.concatenate([first, first])
    weights = np.zeros((len(rows), 2 * half - 1), np.float32)
    weights[:count, half:] = 1  # the first repeated token can't be known
    if half == 1:
        weights[:count] = 1
    whole = Batch(rows[:, :-1], rows[:, 1:], weights)
    terms = [score.terms(_rows(whole, k, score.rows)) for k in range(0, len(rows), score.rows)]
    hits, answers = (np.concatenate([term[i].sum(axis=1) for term in terms])[:count] for i in (1, 2))
    found, chance = accuracy(hits.astype(np.float64), answers.astype(np.float64)), 1 / len(np.unique(ids))
    return Result(suite, "repeated", 2 * half, None, "accuracy", *found, chance, count, length <= trained_length)


def measure_text(score: Scorer, data: Data) -> Iterator[Result]:
    """The loss on held-out text by position, and by kind of token: those that complete a pair of tokens which the row
    has shown already ("repeated pair": recall can know them; Zoology's AR hits, Arora et al. 2023), and the others
    ("new pair").
    """
    batches = list(data.validation(score.rows))
    terms = [score.terms(batch) for batch in batches]
    nll, weights = (np.concatenate([term[i] for term in terms])[: data.validation_rows] for i in (0, 2))
    repeated = np.concatenate([repeated_pairs(batch) for batch in batches])[: len(nll)]
    T = nll.shape[1]
    for kind, mask in (("repeated pair", repeated), ("new pair", ~repeated)):
        yield from _loss(kind, T, nll * mask, weights * mask)
    edges = np.unique(np.concatenate([[0], np.geomspace(1, T, BINS).round().astype(int)]))
    for low, high in zip(edges, edges[1:], strict=False):
        yield from _loss(f"positions {low} to {high - 1}", int(high), nll[:, low:high], weights[:, low:high])


def repeated_pairs(batch: Batch) -> Bool[np.ndarray, "B T"]:
    """Whether (token, target) stood before in the same row and document."""
    found = np.zeros(batch.tokens.shape, bool)
    for b in range(len(batch.tokens)):
        segments = np.zeros_like(batch.tokens[b]) if batch.segments is None else batch.segments[b]
        seen: set[tuple[int, int, int]] = set()
        pairs = zip(batch.tokens[b].tolist(), batch.targets[b].tolist(), segments.tolist(), strict=True)
        for t, pair in enumerate(pairs):
            found[b, t] = pair in seen
            seen.add(pair)
    return found


def _loss(kind: str, length: int, nll: Float[np.ndarray, "R T"], weights: Float[np.ndarray, "R T"]) -> Iterable[Result]:
    """Loss in nats per token and its interval over rows; nothing if there are fewer than two rows with such tokens."""
    sums, weight = nll.sum(axis=1, dtype=np.float64), weights.sum(axis=1, dtype=np.float64)
    sums, weight = sums[weight > 0], weight[weight > 0]
    if len(sums) < 2:
        return []
    mean = sums.sum() / weight.sum()
    residuals = sums - mean * weight
    error = np.sqrt(len(sums) / (len(sums) - 1) * np.square(residuals).sum()) / weight.sum()
    far = norm.ppf((1 + CONFIDENCE) / 2) * error
    bounds = float(mean), float(mean - far), float(mean + far)
    return [Result("text", kind, length, None, "loss", *bounds, None, len(sums), True)]


def _rows(batch: Batch, begin: int, count: int) -> Batch:
    return Batch(*(None if x is None else x[begin : begin + count] for x in batch))
