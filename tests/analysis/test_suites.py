"""Suites ask what their text answers, intervals cover, and a solver gets everything right where guessing does not."""

import re
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binomtest

from gpt_jax.analysis.intervals import accuracy
from gpt_jax.analysis.scoring import Score, Scorer
from gpt_jax.analysis.suites import measure_questions, measure_repeats, measure_task, measure_text, repeated_pairs
from gpt_jax.config import Copy, HardRecall, Induction, Needle, Recall, Sort, Text, Track
from gpt_jax.config.errors import UserError
from gpt_jax.data import Batch, open_data
from gpt_jax.data.prompts import CHOICES, HOPS, KINDS, Haystack, questions
from gpt_jax.data.suites import SUITES, points
from gpt_jax.data.tokenizer import ByteTokenizer

WORDS = ["".join(letters) for letters in np.random.default_rng(0).choice(list("abcdefgh"), (150, 5))]
TEXT = " ".join(np.random.default_rng(1).choice(WORDS, 1500)) + "."


@pytest.fixture(scope="module")
def hay() -> Haystack:
    tokenizer = ByteTokenizer()
    return Haystack(np.array(tokenizer.encode(TEXT)), tokenizer)


class Solver(Scorer):
    """In place of a model: hits what `knows` says of a batch, and prefers the choice that `answer` names."""

    def __init__(self, knows=None, answer=None) -> None:
        self.rows, self.knows, self.answer = 8, knows, answer
        self.seen: list[Batch] = []

    def terms(self, batch: Batch):
        self.seen.append(batch)
        hits = self.knows(batch) if self.knows else np.zeros_like(batch.weights)
        return [batch.weights * 2.0, batch.weights * hits, batch.weights]

    def __call__(self, asked):
        decode = ByteTokenizer().decode
        return [Score(float(decode(choice) == f" {self.answer(decode(context))}."), False) for context, choice in asked]


def everything(batch: Batch) -> np.ndarray:
    return np.ones_like(batch.weights)


def guessing(chance: float):
    rng = np.random.default_rng(0)
    return lambda batch: rng.random(batch.weights.shape) < chance


def solve(context: str) -> str:
    """What the facts of a context say about its last line."""
    facts = dict(re.findall(r"\n(\w+) is (\w+)\.", context))
    if context.endswith("word:"):
        return Counter(re.findall(r"\nword: (\w+)\.", context)).most_common(1)[0][0]
    name = re.search(r"\n(\w+) is$", context)[1]  # type: ignore[index]
    while name in facts:
        name = facts[name]
    return name


@pytest.mark.parametrize("suite, kind", [(suite, kind) for suite, kinds in KINDS.items() for kind in kinds])
def test_a_reader_of_the_text_answers_every_question(hay: Haystack, suite: str, kind: str) -> None:
    asked = questions(hay, suite, kind, 600, 30)
    assert len(asked) == 30 and {question.answer for question in asked} == set(range(CHOICES))
    for question in asked:
        assert len(question.choices) == CHOICES == len(set(map(tuple, question.choices)))
        assert 560 < len(question.context) + max(map(len, question.choices)) - 1 <= 600
    found = measure_questions(Solver(answer=solve), hay, suite, kind, 600, 30, 300)
    assert found is not None and found.value == found.high == 1 and found.low > 0.85 and not found.trained
    guess = measure_questions(Solver(answer=lambda _: "nothing"), hay, suite, kind, 600, 200, 600)  # the first choice
    assert guess is not None and guess.low <= 1 / CHOICES <= guess.high and guess.trained
    assert questions(hay, suite, kind, 20, 30) == []


def test_variables_take_every_link(hay: Haystack) -> None:
    for question in questions(hay, "ruler", f"variables, {HOPS} links", 600, 10):
        facts = dict(re.findall(r"\n(\w+) is (\w+)\.", hay.tokenizer.decode(question.context)))
        name, links = re.search(r"\n(\w+) is$", hay.tokenizer.decode(question.context))[1], 0  # type: ignore[index]
        while name in facts:
            name, links = facts[name], links + 1
        assert links == 1 + HOPS and len(facts) == (1 + HOPS) * CHOICES


LEARNED = {
    "recall": [Recall(symbols=16, pairs=3, length=24), HardRecall(symbols=16, pairs=3, length=24, noise=2)],
    "copy": [Copy(symbols=5, length=6)],
    "sort": [Sort()],
    "induction": [Induction(symbols=8, length=12, shortest_period=2, longest_period=6)],
    "needle": [Needle(symbols=16, needles=2, length=24)],
    "states": [Track("parity", 8), Track("s5", 8)],
}


@pytest.mark.parametrize("suite", SUITES)
def test_points_of_a_task_are_tasks_of_its_vocabulary(suite: str) -> None:
    for learned in LEARNED[suite]:
        found, vocabulary = points(suite, learned, 40), open_data(learned, 999, 0).vocab_size
        assert len({point.length for point in found}) >= 3
        for point in found:
            data = open_data(point.task, 10**6, 0)
            assert data.vocab_size == vocabulary and data.row_length == point.length and data.validation_rows == 40
        last = found[-1]
        right, guess = (measure_task(Solver(knows), last, 10) for knows in (everything, guessing(last.chance)))
        assert right.value == 1 and guess.low <= last.chance <= guess.high and right.trained == (last.length <= 10)
    if suite == "recall":
        assert {point.kind for point in found} == {"recall", "noisy", "stacked", "forgetting", "full of pairs"}


def test_a_suite_of_other_symbols_is_refused() -> None:
    with pytest.raises(UserError, match="never saw: choose --suite=copy"):
        points("recall", Copy(), 10)
    with pytest.raises(UserError, match="no rows of .* choose larger --lengths"):
        points("recall", LEARNED["recall"][0], 40, [1])


def test_repeats_are_known_but_for_their_beginning() -> None:
    ids = np.arange(50) % 7
    for suite in ("copy", "induction"):
        solver = Solver(everything)
        found = measure_repeats(solver, ids, suite, 20, 11, 20)
        assert (found.value, found.rows, found.length, found.chance) == (1, 11, 20, 1 / 7)
        (first, second) = solver.seen
        for batch in (first, second):
            row = np.concatenate([batch.tokens, batch.targets[:, -1:]], axis=1)
            np.testing.assert_array_equal(row[:, :10], row[:, 10:])
        assert first.weights.sum() == 8 * 9 and second.weights.sum() == 3 * 9 and not first.weights[:, :10].any()


def test_repeated_pairs_are_those_seen_in_the_same_document(tmp_path) -> None:
    tokens = np.array([[1, 2, 1, 2, 3, 1, 2, 1]])
    batch = Batch(tokens[:, :-1], tokens[:, 1:], np.ones((1, 7), np.float32), np.array([[1, 1, 1, 1, 1, 2, 2]]), None)
    assert repeated_pairs(batch).tolist() == [[False, False, True, False, False, False, False]]
    whole = batch._replace(segments=None)
    assert repeated_pairs(whole).tolist() == [[False, False, True, False, False, True, True]]
    (tmp_path / "text.txt").write_text(TEXT)
    data = open_data(Text(path=str(tmp_path / "text.txt")), 32, 0, progress=False)
    results = list(measure_text(Solver(), data))
    assert [r.kind for r in results[:2]] == ["repeated pair", "new pair"]
    assert [r.value for r in results] == pytest.approx([2.0] * len(results)) and len(results) > 5


def test_intervals_are_exact_for_one_answer_a_row_and_wider_where_rows_agree() -> None:
    hits = np.array([1.0] * 13 + [0.0] * 27)
    exact = binomtest(13, 40).proportion_ci(method="exact")
    value, low, high = accuracy(hits, np.ones(40))
    assert value == 13 / 40 and (low, high) == pytest.approx((exact.low, exact.high), abs=0.01)
    alike = accuracy(4 * hits, np.full(40, 4.0))  # four equal answers a row say no more than one
    assert low - 0.02 < alike.low <= low and high <= alike.high < high + 0.02
    for side in (0.0, 1.0):
        ends = binomtest(int(40 * side), 40).proportion_ci(method="exact")
        assert accuracy(np.full(40, 4 * side), np.full(40, 4.0))[1:] == pytest.approx((ends.low, ends.high))


@pytest.mark.parametrize(
    "a, b, rows, answers",
    [(4, 1, 60, 8), (2, 2, 5, 64), (2, 2, 10, 64), (0.0198, 0.0002, 200, 8), (0.99, 0.01, 200, 8)],
)
def test_intervals_cover_as_often_as_they_say(a: float, b: float, rows: int, answers: int) -> None:
    """Rows whose answers share a luck of their own: at least 95% of the intervals hold the true accuracy. A few rows,
    and rows that are nearly all right or all wrong, are no exception.
    """
    rng, covered = np.random.default_rng(0), 0
    for _ in range(500):
        hits = rng.binomial(answers, rng.beta(a, b, rows)).astype(float)
        _, low, high = accuracy(hits, np.full(rows, float(answers)))
        covered += low <= a / (a + b) <= high
    assert covered / 500 >= 0.935


def test_a_wrong_answer_more_never_raises_the_bounds() -> None:
    answers, hits, last = np.full(200, 8.0), np.full(200, 8.0), (2.0, 2.0)
    for row in range(200):
        _, *bounds = accuracy(hits, answers)
        assert bounds[0] <= last[0] and bounds[1] <= last[1]
        last, hits[row] = tuple(bounds), 7.0
    for rows in (1, 3):  # equal rows show no variance, whatever rounding says
        assert accuracy(np.full(rows, 5.0), np.full(rows, 49.0))[1:] == pytest.approx(
            (accuracy(np.full(rows, 10.0), np.full(rows, 98.0))[1:])
        )
