"""Measures a model on suites of questions with known answers: accuracy with an interval, beside the level of chance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm

from gpt_jax.analysis.intervals import CONFIDENCE, accuracy
from gpt_jax.analysis.scoring import Scorer
from gpt_jax.data import Batch, Data, open_data
from gpt_jax.data.prompts import CHOICES, Haystack, NoQuestion, questions
from gpt_jax.data.suites import Point

ANY_LENGTH = 10**9
BINS = 8  # of positions


@dataclass(frozen=True)
class Result:
    """One point of a curve.

    `measure` is "accuracy" (a share of answers) or "loss" (nats per token); `low` and `high` are the ends of the 95%
    interval of `value`; `chance` is the accuracy of an answer that needs no more than the row's own symbols, or, for
    `copy` of text, that of the model before the text repeats (None for a loss); `rows` is the number of rows or
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


Measure = Callable[[Scorer], Result]


def measure_task(score: Scorer, point: Point, trained_length: int) -> Result:
    """The accuracy on the rows of a task."""
    return ask_task(score.rows, point, trained_length)(score)


def ask_task(rows: int, point: Point, trained_length: int) -> Measure:
    """As `measure_task`, of batches of `rows` rows that are made once."""
    data = open_data(point.task, ANY_LENGTH, 0, progress=False)
    batches = list(data.validation(rows))
    within, chance = point.length <= trained_length, max(point.chance, drawn_from_row(batches, point.answers))

    def measure(score: Scorer) -> Result:
        terms = [score.terms(batch) for batch in batches]
        each = (np.concatenate([term[i].sum(axis=1) for term in terms])[: data.validation_rows] for i in (1, 2))
        hits, answers = (values.astype(np.float64) for values in each)
        found = accuracy(hits, answers)
        return Result(point.suite, point.kind, point.length, point.size, "accuracy", *found, chance, len(hits), within)

    return measure


def drawn_from_row(batches: Iterable[Batch], answers: range) -> float:
    """The accuracy of drawing each answer from the symbols before it that are `answers`; 0 if there are no such."""
    right, total = 0.0, 0
    for batch in batches:
        for b, t in zip(*np.nonzero(batch.weights), strict=True):
            seen = batch.tokens[b, : t + 1]
            seen = seen[(seen >= answers.start) & (seen < answers.stop)]
            right += float((seen == batch.targets[b, t]).mean()) if len(seen) else 0.0
            total += 1
    return right / max(total, 1)


def measure_questions(
    score: Scorer, hay: Haystack, suite: str, kind: str, length: int, count: int, trained_length: int
) -> Result:
    """The accuracy of choosing the most probable of several answers.

    Raises:
      NoQuestion: as `questions`.
    """
    return ask_questions(hay, suite, kind, length, count, trained_length)(score)


def ask_questions(hay: Haystack, suite: str, kind: str, length: int, count: int, trained_length: int) -> Measure:
    """As `measure_questions`, of questions that are made once."""
    asked = questions(hay, suite, kind, length, count)

    def measure(score: Scorer) -> Result:
        scores = score([(question.context, choice) for question in asked for choice in question.choices])
        logs = np.array([s.loglikelihood for s in scores]).reshape(len(asked), CHOICES)
        right = (logs.argmax(axis=1) == [question.answer for question in asked]).astype(np.float64)
        found = accuracy(right, np.ones(len(asked)))
        return Result(suite, kind, length, None, "accuracy", *found, 1 / CHOICES, len(asked), length <= trained_length)

    return measure


def measure_repeats(
    score: Scorer, ids: np.ndarray, suite: str, length: int, count: int, trained_length: int, seed: int = 0
) -> Result:
    """The accuracy on the second half of rows that repeat their first half: a passage of the held-out text (`copy`), or
    different tokens of it, drawn uniformly (`induction`).

    The level of chance of `copy` is the model's own accuracy on the same tokens in the first half, which a model of
    text guesses without copying. That of `induction` is always answering with the commonest token of the first half.

    Raises:
      NoQuestion: rows of this length have no half that repeats.
    """
    return ask_repeats(score.rows, ids, suite, length, count, trained_length, seed)(score)


def ask_repeats(
    size: int, ids: np.ndarray, suite: str, length: int, count: int, trained_length: int, seed: int = 0
) -> Measure:
    """As `measure_repeats`, of batches of `size` rows that are made once."""
    rng, half = np.random.default_rng(seed), length // 2
    if half < 2:
        raise NoQuestion("a row that repeats has 4 tokens or more")
    rows, different = np.empty((-(-count // size) * size, 2 * half), np.int32), np.unique(ids)
    for row in rows:
        begin = int(rng.integers(0, max(len(ids) - half, 0) + 1))
        first = np.resize(ids[begin : begin + half], half) if suite == "copy" else rng.choice(different, half)
        row[:] = np.concatenate([first, first])
    weights = np.zeros((len(rows), 2 * half - 1), np.float32)
    weights[:count] = 1
    weights[:, half - 1] = 0  # the first repeated token can't be known
    whole, within = Batch(rows[:, :-1], rows[:, 1:], weights), length <= trained_length
    commonest = float(np.mean([_commonest(row[:half]) for row in rows[:count]]))

    def measure(score: Scorer) -> Result:
        terms = [score.terms(_rows(whole, k, size)) for k in range(0, len(rows), size)]
        hits = np.concatenate([term[1] for term in terms])[:count].astype(np.float64)
        found = accuracy(hits[:, half:].sum(axis=1), np.full(count, half - 1.0))
        chance = float(hits[:, : half - 1].mean()) if suite == "copy" else commonest
        return Result(suite, "repeated", 2 * half, None, "accuracy", *found, chance, count, within)

    return measure


def _commonest(first: np.ndarray) -> float:
    """The accuracy of always answering with the commonest token of the first half, on all but its first token."""
    values, counts = np.unique(first, return_counts=True)
    return float(np.mean(first[1:] == values[counts.argmax()]))


def measure_text(score: Scorer, data: Data, rows: int | None = None) -> Iterator[Result]:
    """The loss on held-out text by position, and by kind of token: those that complete a pair of tokens which the row
    has shown already ("repeated pair": recall can know them; Zoology's AR hits, Arora et al. 2023), and the others
    ("new pair"); of the first `rows` rows (None: of all).
    """
    count = data.validation_rows if rows is None else min(rows, data.validation_rows)
    batches = list(islice(data.validation(score.rows), -(-count // score.rows)))
    terms = [score.terms(batch) for batch in batches]
    nll, weights = (np.concatenate([term[i] for term in terms])[:count] for i in (0, 2))
    repeated = np.concatenate([repeated_pairs(batch) for batch in batches])[: len(nll)]
    T = nll.shape[1]
    for kind, mask in (("repeated pair", repeated), ("new pair", ~repeated)):
        yield from _loss(kind, T, nll * mask, weights * mask)
    edges = np.unique(np.concatenate([[0], np.geomspace(1, T, BINS).round().astype(int)]))
    for low, high in zip(edges, edges[1:], strict=False):
        place = f"position {low}" if high == low + 1 else f"positions {low} to {high - 1}"
        yield from _loss(place, int(high), nll[:, low:high], weights[:, low:high])


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
