"""Questions with known answers for models of text, of a wanted length, in a haystack of the model's own held-out text.

The kinds follow RULER (Hsieh et al. 2024, arXiv:2404.06654): a needle, one of several needles (multi-key), a chain of
variables, and the most frequent word (aggregation); `recall` is a list of as many pairs as fit. Names and values are
words of the held-out text that the haystack of the question lacks, so that its sentences say nothing about them. All
questions have CHOICES answers to choose from, and all of these stand in the text: preferring words seen is no help.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gpt_jax.config.errors import UserError
from gpt_jax.data.tokenizer import Tokenizer

CHOICES = 4  # so that guessing is right in a quarter of the questions
HOPS = 2  # links of a chain of variables
REPEATS = 4  # how often the most frequent word stands
TRIES = 10  # draws of words for one question, until they fit

LETTERS = re.compile(r"[a-z]+")


class NoQuestion(Exception):
    """Questions of this kind and length cannot be asked; the message says why."""


class Question(NamedTuple):
    """A context, the continuations to choose from, and the index of the right one; as token ids."""

    context: list[int]
    choices: list[list[int]]
    answer: int


class Haystack:
    """Held-out text (N,) as ids, and its distinct words of 4 to 8 letters, of which none differ by case alone.

    Raises:
      UserError: the text has too few words.
    """

    def __init__(self, ids: np.ndarray, tokenizer: Tokenizer, seed: int = 0) -> None:
        self.ids, self.tokenizer, self.rng = ids, tokenizer, np.random.default_rng(seed)
        text = tokenizer.decode(ids[: 1 << 20].tolist())
        found = sorted(set(re.findall(r"\b[A-Za-z][a-z]{3,7}\b", text)))
        self._spelled = {word.lower(): word for word in found}
        self.words = list(self._spelled.values())
        if len(self.words) < 64:
            raise UserError(
                f"the held-out text has {len(self.words)} different words of 4 to 8 letters, and questions need 64: "
                "ask a run on a longer text, or leave out the suites " + ", ".join(KINDS)
            )

    def encode(self, text: str) -> list[int]:
        try:
            return self.tokenizer.encode(text, allowed_special="none")
        except UserError as error:
            raise NoQuestion(str(error)) from None

    def after(self, text: str, more: str) -> list[int]:
        """The ids of `more` as they follow `text`: tokenizers may write a text's beginning in another way."""
        before, whole = self.encode(text), self.encode(text + more)
        if whole[: len(before)] != before:
            raise NoQuestion(f"the tokenizer has tokens that join the end of {text!r} with {more!r}")
        return whole[len(before) :]

    def passage(self, length: int) -> tuple[list[int], list[str]]:
        """`length` ids of the text, and the words that do not stand there. At most half of the text is taken, and
        repeated if it is shorter, so that there are other words.
        """
        span = min(length, len(self.ids) // 2)
        begin = int(self.rng.integers(0, len(self.ids) - span + 1))
        passage = self.ids[begin : begin + span]
        there = set(LETTERS.findall(self.tokenizer.decode(passage.tolist()).lower()))
        return np.resize(passage, length).tolist(), [
            word for lower, word in self._spelled.items() if lower not in there
        ]

    def draw(self, words: Sequence[str], count: int) -> list[str]:
        """Different ones of `words`."""
        if len(words) < count:
            raise NoQuestion(f"the held-out text has {len(words)} words for names and values, and {count} are needed")
        return [words[i] for i in self.rng.choice(len(words), count, replace=False)]

    def scatter(self, hay: Sequence[int], facts: Sequence[Sequence[int]]) -> list[int]:
        """`facts`, in order, at random places of `hay`."""
        cuts = sorted(self.rng.integers(0, len(hay) + 1, len(facts)).tolist())
        parts = [hay[a:b] for a, b in zip([0, *cuts], [*cuts, len(hay)], strict=True)]
        return [x for part, fact in zip(parts, [*facts, []], strict=True) for x in [*part, *fact]]


class Puzzle(NamedTuple):
    """Facts in order of appearance, the question, and the words to choose from, of which the first is right."""

    facts: list[str]
    asked: str
    choices: list[str]


def _fact(name: str, value: str) -> str:
    return f"\n{name} is {value}.\n"


def _needle(hay: Haystack, words: list[str]) -> Puzzle:
    """The values that are wrong stand alone."""
    name, *values = hay.draw(words, 1 + CHOICES)
    said = [_fact(name, values[0]), *(f"\n{value}.\n" for value in values[1:])]
    return Puzzle([said[i] for i in hay.rng.permutation(CHOICES)], f"\n{name} is", values)


def _several_needles(hay: Haystack, words: list[str]) -> Puzzle:
    drawn = hay.draw(words, 2 * CHOICES)
    names, values = drawn[:CHOICES], drawn[CHOICES:]
    facts = [_fact(name, value) for name, value in zip(names, values, strict=True)]
    return Puzzle([facts[i] for i in hay.rng.permutation(CHOICES)], f"\n{names[0]} is", values)


def _variables(hay: Haystack, words: list[str]) -> Puzzle:
    drawn = hay.draw(words, (2 + HOPS) * CHOICES)
    chains = [drawn[i::CHOICES] for i in range(CHOICES)]  # value, then the names that stand for it, link by link
    facts = [_fact(chains[c][k + 1], chains[c][k]) for k in range(1 + HOPS) for c in hay.rng.permutation(CHOICES)]
    return Puzzle(facts, f"\n{chains[0][-1]} is", [chain[0] for chain in chains])


def _most_frequent(hay: Haystack, words: list[str]) -> Puzzle:
    drawn = hay.draw(words, CHOICES)
    said = [drawn[0]] * REPEATS + drawn[1:]
    facts = [f"\nthe list has {said[i]}.\n" for i in hay.rng.permutation(len(said))]
    return Puzzle(facts, "\nmost often, the list has", drawn)


def _hidden(puzzle: Callable[[Haystack, list[str]], Puzzle], hay: Haystack, length: int) -> Question:
    """A question whose facts stand at random places of the text."""
    passage, words = hay.passage(length)
    facts, asked, drawn = puzzle(hay, words)
    choices = [hay.after(asked, f" {word}.") for word in drawn]
    encoded, end = [hay.encode(fact) for fact in facts], hay.encode(asked)
    room = length + 1 - sum(map(len, encoded)) - len(end) - max(map(len, choices))
    if room < 0:
        raise NoQuestion("its facts are longer")
    return Question(hay.scatter(passage[:room], encoded) + end, choices, 0)


def _pairs(hay: Haystack, length: int) -> Question:
    """A list of facts and nothing else: of as many as fit."""
    drawn = hay.draw(hay.words, 2 * min(len(hay.words) // 2, length))
    pairs = list(zip(drawn[::2], drawn[1::2], strict=True))
    values = [value for _, value in pairs[:CHOICES]]
    asked = f"\n{pairs[0][0]} is"
    choices, end = [hay.after(asked, f" {value}.") for value in values], hay.encode(asked)
    room = length + 1 - len(end) - max(map(len, choices))
    facts: list[list[int]] = []
    for name, value in pairs:
        facts.append(hay.encode(f"\n{name} is {value}."))
        room -= len(facts[-1])
        if room < 0:
            break
    else:
        raise NoQuestion(f"the held-out text has words for {len(pairs)} pairs, and more would fit")
    if len(facts) <= CHOICES:
        raise NoQuestion(f"it has no room for {CHOICES} pairs")
    return Question([x for i in hay.rng.permutation(len(facts) - 1) for x in facts[i]] + end, choices, 0)


def _in_text(puzzle: Callable[[Haystack, list[str]], Puzzle]) -> Callable[[Haystack, int], Question]:
    return lambda hay, length: _hidden(puzzle, hay, length)


KINDS: dict[str, dict[str, Callable[[Haystack, int], Question]]] = {
    "needle": {"one needle": _in_text(_needle)},
    "ruler": {
        f"one of {CHOICES} needles": _in_text(_several_needles),
        f"variables, {HOPS} links": _in_text(_variables),
        "most frequent word": _in_text(_most_frequent),
    },
    "recall": {"list of pairs": _pairs},
}


def questions(hay: Haystack, suite: str, kind: str, length: int, count: int) -> list[Question]:
    """`count` questions of one kind, of `length` ids each with the longest answer; those of a list of pairs, which has
    nothing else, are up to one pair shorter.

    Raises:
      NoQuestion: they do not fit, the text has too few words, or the tokenizer cannot write them.
    """
    return [_at_place(i % CHOICES, _fitting(hay, suite, kind, length)) for i in range(count)]


def _fitting(hay: Haystack, suite: str, kind: str, length: int) -> Question:
    """One question, of other words if the first ones do not fit."""
    for _ in range(TRIES - 1):
        try:
            return KINDS[suite][kind](hay, length)
        except NoQuestion:
            pass
    return KINDS[suite][kind](hay, length)


def _at_place(place: int, question: Question) -> Question:
    """The right choice at `place` among the others, so that each place is right equally often."""
    right, *others = question.choices
    return Question(question.context, [*others[:place], right, *others[place:]], place)
