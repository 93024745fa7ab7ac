"""Suites ask what their text answers, intervals cover, and a solver gets everything right where guessing does not."""

import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from gpt_jax.analysis.intervals import accuracy
from gpt_jax.analysis.scoring import Score, Scorer
from gpt_jax.analysis.suites import measure_questions, measure_repeats, measure_task, measure_text, repeated_pairs
from gpt_jax.config import Bpe, Copy, HardRecall, Induction, Needle, Recall, Sort, Text, Track
from gpt_jax.config.errors import UserError
from gpt_jax.data import Batch, open_data
from gpt_jax.data.prompts import CHOICES, HOPS, KINDS, REPEATS, Haystack, NoQuestion, questions
from gpt_jax.data.suites import SUITES, points
from gpt_jax.data.tokenizer import ByteTokenizer, CharacterTokenizer, make_tokenizer

ROOT = Path(__file__).resolve().parents[2]
# Of every length that questions use.
WORDS = ["".join(np.random.default_rng(i).choice(list("abcdefgh"), 4 + i % 5)) for i in range(300)]
TEXT = " ".join(np.random.default_rng(1).choice(WORDS, 3000)) + "."


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


def drawing(places: slice, answers: range):
    """Draws each answer from the symbols at `places` of the row that can be one, and that stand before it."""
    rng = np.random.default_rng(0)

    def knows(batch: Batch) -> np.ndarray:
        hits = np.zeros_like(batch.weights)
        for b, t in zip(*np.nonzero(batch.weights), strict=True):
            shown = [symbol for symbol in batch.tokens[b, : t + 1][places] if symbol in answers]
            hits[b, t] = bool(shown) and rng.choice(shown) == batch.targets[b, t]
        return hits

    return knows


def solve(context: str) -> str:
    """What the facts of a context say about its last line."""
    facts = dict(re.findall(r"\n(\w+) is (\w+)\.", context))
    if context.endswith("the list has"):
        return Counter(re.findall(r"\nthe list has (\w+)\.", context)).most_common(1)[0][0]
    name = re.search(r"\n(\w+) is$", context)[1]  # type: ignore[index]
    while name in facts:
        name = facts[name]
    return name


@pytest.mark.parametrize("suite, kind", [(suite, kind) for suite, kinds in KINDS.items() for kind in kinds])
def test_a_reader_of_the_text_answers_every_question(hay: Haystack, suite: str, kind: str) -> None:
    asked = questions(hay, suite, kind, 600, 30)
    assert len(asked) == 30 and {question.answer for question in asked} == set(range(CHOICES))
    decode = hay.tokenizer.decode
    for question in asked:
        assert len(question.choices) == CHOICES == len(set(map(tuple, question.choices)))
        assert 600 - 25 * (suite == "recall") <= len(question.context) + max(map(len, question.choices)) - 1 <= 600
        text, words = decode(question.context), [decode(choice)[1:-1] for choice in question.choices]
        counts = [len(re.findall(rf"\b{word}\b", text)) for word in words]
        assert min(counts) >= 1  # having stood in the text is no hint
        assert max(counts) == 1 or kind == "most frequent word" and sorted(counts) == [1, 1, 1, REPEATS]
    found = measure_questions(Solver(answer=solve), hay, suite, kind, 600, 30, 300)
    assert found.value == found.high == 1 and found.low > 0.85 and not found.trained
    guess = measure_questions(Solver(answer=lambda _: "nothing"), hay, suite, kind, 600, 200, 600)  # the first choice
    assert guess.value == 1 / CHOICES and guess.trained
    with pytest.raises(NoQuestion, match="facts are longer|no room for 4 pairs"):
        questions(hay, suite, kind, 20, 30)


def test_a_list_of_pairs_is_asked_at_every_length_that_holds_it() -> None:
    """Of words of any length, whose number alone says how many fit."""
    text = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    for tokenizer in (ByteTokenizer(), make_tokenizer(Bpe(vocab_size=400), [text])):
        hay = Haystack(np.array(tokenizer.encode(text)), tokenizer)
        for length in (128, 256, 512):
            for question in questions(hay, "recall", "list of pairs", length, 20):
                assert length - 25 < len(question.context) + max(map(len, question.choices)) - 1 <= length
    few = Haystack(np.array(tokenizer.encode(" ".join(WORDS[:70]))), tokenizer)
    with pytest.raises(NoQuestion, match="words for 3. pairs, and more would fit"):
        questions(few, "recall", "list of pairs", 2048, 1)


def test_the_haystack_never_speaks_of_the_names_it_is_asked_for() -> None:
    """Even where every sentence of the text has the form of a fact."""
    said = [f"{a.capitalize()} is {b}." for a, b in itertools.pairwise(WORDS)]
    tokenizer = ByteTokenizer()
    hay = Haystack(np.array(tokenizer.encode("\n".join(said))), tokenizer)
    for suite, kind in (("needle", "one needle"), ("ruler", "most frequent word"), ("ruler", "variables, 2 links")):
        for question in questions(hay, suite, kind, 900, 20):
            text = tokenizer.decode(question.context)
            assert f" {solve(text)}." == tokenizer.decode(question.choices[question.answer])
            names = re.findall(r"\n(\w+) is", text)[-1:] if "list" not in kind else []
            assert all(len(re.findall(rf"(?i)\b{name} is", text)) == 2 for name in names if kind == "one needle")


def test_tokenizers_that_cannot_write_a_question_are_told() -> None:
    text = TEXT.replace("\n", " ") + " is"
    letters = CharacterTokenizer(sorted(set(text)))
    with pytest.raises(NoQuestion, match=r"U\+000A.*not among the 12 characters"):
        questions(Haystack(np.array(letters.encode(text)), letters), "needle", "one needle", 600, 1)


def test_choices_are_written_as_the_facts_write_them() -> None:
    """Also by tokenizers that put a space before a text, as Llama's does."""
    text = TEXT + "\n is"
    spaced = make_tokenizer(Bpe(vocab_size=300), [text])
    plain = spaced.encode
    spaced.encode = lambda text, allowed_special="none_raise": plain(" " + text, allowed_special)  # type: ignore[method-assign]
    hay = Haystack(np.array(plain(text)), spaced)
    for question in questions(hay, "needle", "one needle", 200, 10):
        value = question.choices[question.answer]
        context = question.context
        assert any(context[i : i + len(value)] == value for i in range(len(context)))


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
    "needle": [Needle(symbols=16, needles=2, length=24), Needle(symbols=16, needles=1, length=24)],
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
        right = measure_task(Solver(everything), found[-1], 10)
        assert right.value == 1 and right.trained == (found[-1].length <= 10)
        assert len({(point.kind, point.length, point.size) for point in found}) == len(found)
    if suite == "recall":
        assert {point.kind for point in found} == {"recall", "noisy", "stacked", "forgetting", "full of pairs"}


@pytest.mark.parametrize("suite", SUITES)
def test_chance_is_what_a_draw_from_the_row_scores(suite: str) -> None:
    for learned in LEARNED[suite]:
        for point in points(suite, learned, 200, [24]):
            places = slice(0, 2 * learned.pairs) if point.kind == "recall" else slice(None)
            solver = Solver(echo if suite == "states" else drawing(places, point.answers))
            drawn = measure_task(solver, point, 10)
            assert drawn.low <= drawn.chance, point
            exact = suite != "recall" or point.kind == "recall"  # else the draw also takes values that replaced others
            assert not exact or drawn.chance <= drawn.high, point


def echo(batch: Batch) -> np.ndarray:
    """Answers with its input."""
    return batch.tokens == batch.targets


def test_ignoring_updates_scores_what_the_page_says() -> None:
    learned = Recall(symbols=32, pairs=8, length=48)
    (task,) = (
        point.task for point in points("recall", learned, 100) if point.kind == "forgetting" and point.length == 48
    )
    right = total = 0
    for batch in open_data(task, 10**6, 0).validation(50):
        for tokens, targets, weights in zip(batch.tokens, batch.targets, batch.weights, strict=True):
            for t in np.flatnonzero(weights):
                first = tokens.tolist().index(tokens[t])  # the key's first value, which an update may have replaced
                right, total = right + (tokens[first + 1] == targets[t]), total + 1
    assert right / total == 0.5


def test_a_suite_of_other_symbols_is_refused() -> None:
    with pytest.raises(UserError, match="never saw: choose --suite=copy"):
        points("recall", Copy(), 10)
    assert [point.length for point in points("copy", Copy(), 40, [8, 9])] == [8]  # 9 rounds to 8
    with pytest.raises(UserError, match="no rows of .* choose larger --lengths"):
        points("recall", LEARNED["recall"][0], 40, [1])


def test_repeats_are_known_but_for_their_beginning() -> None:
    ids = np.arange(50) % 7
    for suite in ("copy", "induction"):
        solver = Solver(lambda batch: np.arange(batch.weights.shape[1]) >= 10)
        found = measure_repeats(solver, ids, suite, 20, 11, 20)
        assert (found.value, found.rows, found.length) == (1, 11, 20)
        (first, second) = solver.seen
        for batch in (first, second):
            row = np.concatenate([batch.tokens, batch.targets[:, -1:]], axis=1)
            np.testing.assert_array_equal(row[:, :10], row[:, 10:])
        assert not first.weights[:, 9].any() and first.weights.sum() == 8 * 18 and second.weights.sum() == 3 * 18
        with pytest.raises(NoQuestion, match="4 tokens"):
            measure_repeats(solver, ids, suite, 3, 11, 20)


def test_random_tokens_are_equally_probable() -> None:
    solver, ids = Solver(), np.array([0] * 90 + list(range(10)))
    measure_repeats(solver, ids, "induction", 64, 24, 64)
    counts = np.bincount(np.concatenate([batch.tokens.ravel() for batch in solver.seen]))
    assert len(counts) == 10 and counts.min() > 0.7 * counts.mean() and counts.max() < 1.3 * counts.mean()


def test_knowing_the_text_without_copying_is_chance() -> None:
    """A table of pairs predicts some of any text, and so do the commonest tokens."""
    ids = np.array(ByteTokenizer().encode(TEXT))
    after = {a: Counter(ids[1:][ids[:-1] == a].tolist()).most_common(1)[0][0] for a in set(ids[:-1].tolist())}
    by_pairs = Solver(lambda batch: np.vectorize(lambda a: after.get(a, -1))(batch.tokens) == batch.targets)
    found = measure_repeats(by_pairs, ids, "copy", 64, 200, 64)
    assert 0.15 < found.chance == pytest.approx(found.value, abs=1e-9)
    found = measure_repeats(by_pairs, ids, "induction", 64, 200, 64)
    assert found.low <= found.chance
    best = Solver(
        lambda batch: batch.targets == np.array([np.bincount(row[:32]).argmax() for row in batch.tokens])[:, None]
    )
    found = measure_repeats(best, ids, "induction", 64, 200, 64)
    assert found.low <= found.chance <= found.high
    spaces = measure_repeats(Solver(lambda batch: batch.targets == ord(" ")), ids, "induction", 64, 200, 64)
    assert spaces.low <= spaces.chance


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
    assert low - 0.02 < alike.low < low - 1e-3 and high + 1e-3 < alike.high < high + 0.02  # the t of 40 rows
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
            accuracy(np.full(rows, 10.0), np.full(rows, 98.0))[1:]
        )
