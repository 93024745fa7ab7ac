"""Questions with known answers for models of text, of a wanted length, in a haystack of the model's own held-out text.

The kinds follow RULER (Hsieh et al. 2024, arXiv:2404.06654): a needle, one of several needles (multi-key), a chain of
variables, and the most frequent word (aggregation); `recall` is a list of as many pairs as fit. Names and values are
words of the held-out text, so that every tokenizer has them. All questions have CHOICES answers to choose from.
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


class Question(NamedTuple):
    """A context, the continuations to choose from, and the index of the right one; as token ids."""

    context: list[int]
    choices: list[list[int]]
    answer: int


class Haystack:
    """Held-out text (N,) as ids, and its distinct words of 4 to 8 letters.

    Raises:
      UserError: the text has too few words.
    """

    def __init__(self, ids: np.ndarray, tokenizer: Tokenizer, seed: int = 0) -> None:
        self.ids, self.tokenizer, self.rng = ids, tokenizer, np.random.default_rng(seed)
        text = tokenizer.decode(ids[: 1 << 20].tolist())
        self.words = sorted(set(re.findall(r"\b[A-Za-z][a-z]{3,7}\b", text)))
        if len(self.words) < 64:
            raise UserError(
                f"the held-out text has {len(self.words)} different words of 4 to 8 letters, and questions need 64: "
                "give a longer one with --data"
            )

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, allowed_special="none")

    def draw(self, count: int) -> list[str]:
        """Different words."""
        return [self.words[i] for i in self.rng.choice(len(self.words), count, replace=False)]

    def fill(self, facts: Sequence[str], question: str, length: int, longest: int) -> list[int] | None:
        """`facts`, in order, at random places of the text, then the question; with an answer of `longest` ids, `length`
        ids together. None: they do not fit.
        """
        encoded, asked = [self.encode(fact) for fact in facts], self.encode(question)
        room = length + 1 - sum(map(len, encoded)) - len(asked) - longest
        if room < 0:
            return None
        begin = int(self.rng.integers(0, max(len(self.ids) - room, 1)))
        hay = np.resize(self.ids[begin : begin + room], room).tolist()
        cuts = sorted(self.rng.integers(0, room + 1, len(facts)).tolist())
        parts = [hay[a:b] for a, b in zip([0, *cuts], [*cuts, room], strict=True)]
        return [x for part, fact in zip(parts, [*encoded, []], strict=True) for x in part + fact] + asked


# Facts in order of appearance, the question, and the choices, of which the first is right.
Puzzle = tuple[list[str], str, list[str]]


def _needle(hay: Haystack, length: int) -> Puzzle:
    name, *values = hay.draw(1 + CHOICES)
    return [f"\n{name} is {values[0]}.\n"], f"\n{name} is", values


def _several_needles(hay: Haystack, length: int) -> Puzzle:
    words = hay.draw(2 * CHOICES)
    names, values = words[:CHOICES], words[CHOICES:]
    facts = [f"\n{name} is {value}.\n" for name, value in zip(names, values, strict=True)]
    return [facts[i] for i in hay.rng.permutation(CHOICES)], f"\n{names[0]} is", values


def _variables(hay: Haystack, length: int) -> Puzzle:
    words = hay.draw((2 + HOPS) * CHOICES)
    chains = [words[i::CHOICES] for i in range(CHOICES)]  # value, then the names that stand for it, link by link
    facts = [
        f"\n{chains[c][k + 1]} is {chains[c][k]}.\n" for k in range(1 + HOPS) for c in hay.rng.permutation(CHOICES)
    ]
    return facts, f"\n{chains[0][-1]} is", [chain[0] for chain in chains]


def _most_frequent(hay: Haystack, length: int) -> Puzzle:
    words = hay.draw(CHOICES)
    said = [words[0]] * REPEATS + words[1:]
    return [f"\nword: {said[i]}.\n" for i in hay.rng.permutation(len(said))], "\nthe most frequent word:", words


def _pairs(hay: Haystack, length: int) -> Puzzle:
    each = len(hay.encode("\nsome is thing.\n"))
    count = min(max(length // each - 1, CHOICES), len(hay.words) // 2)
    words = hay.draw(2 * count)
    facts = [f"\n{name} is {value}." for name, value in zip(words[:count], words[count:], strict=True)]
    order = hay.rng.permutation(count)
    others = [i for i in order if i != 0][: CHOICES - 1]
    return ["".join(facts[i] for i in order)], f"\n{words[0]} is", [words[count + i] for i in [0, *others]]


KINDS: dict[str, dict[str, Callable[[Haystack, int], Puzzle]]] = {
    "needle": {"one needle": _needle},
    "ruler": {
        f"one of {CHOICES} needles": _several_needles,
        f"variables, {HOPS} links": _variables,
        "most frequent word": _most_frequent,
    },
    "recall": {"list of pairs": _pairs},
}


def questions(hay: Haystack, suite: str, kind: str, length: int, count: int) -> list[Question]:
    """`count` questions of one kind, of `length` ids each with the longest answer; none if they do not fit."""
    found: list[Question] = []
    for _ in range(count):
        facts, asked, words = KINDS[suite][kind](hay, length)
        choices = [hay.encode(f" {word}.") for word in words]
        context = hay.fill(facts, asked, length, max(map(len, choices)))
        if context is None:
            return []
        order = hay.rng.permutation(CHOICES).tolist()
        found.append(Question(context, [choices[i] for i in order], order.index(0)))
    return found
