"""Answers to multiple-choice questions by the log-likelihood of each choice: raw, per character and per byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import t

from gpt_jax.analysis.intervals import CONFIDENCE, accuracy
from gpt_jax.analysis.scoring import Scorer
from gpt_jax.config.errors import UserError
from gpt_jax.data.requests import Question
from gpt_jax.data.tokenizer import Tokenizer

PER_BYTE = "bits per byte"


@dataclass(frozen=True)
class Measured:
    """A mean over `questions` questions with the ends of its 95% interval; `chance` is the accuracy of guessing."""

    name: str
    value: float
    low: float
    high: float
    chance: float | None
    questions: int


@dataclass(frozen=True)
class Answers:
    """What a model scores on a task, and the log-likelihoods of the choices in nats by the question's number."""

    measured: tuple[Measured, ...]
    loglikelihoods: dict[int, tuple[float, ...]]


def answer(score: Scorer, tokenizer: Tokenizer, questions: Sequence[Question]) -> Answers:
    """The accuracy of choosing the most probable continuation, and the bits per byte of the right one.

    `accuracy` compares sums of log-probabilities, `accuracy per character` and `accuracy per byte` divide them by the
    length of the continuation without the space that it begins with. Of equal choices the first is chosen. `bits per
    byte` is the mean over questions of −log₂ p of the right continuation per byte of it, its space included. It is all
    that is measured of questions without a choice.

    Raises:
      UserError: the tokenizer cannot write a text, or a continuation exceeds the model's context length.
    """
    asked = [encoded(tokenizer, *choice) for question in questions for choice in question.choices]
    found = iter(score(asked))
    logs = [np.array([next(found).loglikelihood for _ in question.choices]) for question in questions]
    measured = []
    if all(question.right is not None for question in questions):
        chance = float(np.mean([1 / len(question.choices) for question in questions]))
        for name, length in LENGTHS.items():
            picked = [chosen(*pair, length) for pair in zip(questions, logs, strict=True)]
            right = np.array([pick == question.right for pick, question in zip(picked, questions, strict=True)], float)
            measured.append(Measured(name, *accuracy(right, np.ones(len(right))), chance, len(right)))
    bits = [
        -log[question.right or 0] / np.log(2) / len(question.choices[question.right or 0][1].encode())
        for question, log in zip(questions, logs, strict=True)
    ]
    measured.append(Measured(PER_BYTE, *_mean(np.array(bits)), None, len(bits)))
    by_number = {q.number: tuple(map(float, log)) for q, log in zip(questions, logs, strict=True)}
    return Answers(tuple(measured), by_number)


LENGTHS: dict[str, Callable[[str], int]] = {
    "accuracy": lambda text: 1,
    "accuracy per character": lambda text: max(len(text.removeprefix(" ")), 1),
    "accuracy per byte": lambda text: max(len(text.removeprefix(" ").encode()), 1),
}


def chosen(question: Question, logs: Float[np.ndarray, " N"], length: Callable[[str], int]) -> int:
    """The index of the choice of the largest log-likelihood by `length` of its continuation."""
    return int(np.argmax(logs / [length(continuation) for _, continuation in question.choices]))


def encoded(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The ids of a context and of its continuation: those that the whole text has beyond the context's own. White
    space at the end of the context belongs to the continuation, where tokenizers put it. A text begins with the
    tokenizer's prefix, and one without a context with that or with the token that ends a text.

    Raises:
      UserError: the tokenizer cannot write the text, or has no token for an empty context.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    before = tokenizer.encode(kept, allowed_special="none")
    whole = tokenizer.encode(kept + continuation, allowed_special="none")
    prefix = list(tokenizer.prefix)
    start, after = [*prefix, *whole[: len(before)]], whole[len(before) :]
    if not start:
        if tokenizer.end_of_text is None:
            raise UserError("this tokenizer has no token that begins a text, which questions without a context need")
        start = [tokenizer.end_of_text]
    if not after:
        raise UserError(f"the tokenizer joins the end of {kept[-20:]!r} with {continuation[:20]!r}: leave the task out")
    return start, after


def _mean(values: Float[np.ndarray, " R"]) -> tuple[float, float, float]:
    """The mean and the ends of Student's 95% interval, which one value has none of: it is the value."""
    mean, n = float(values.mean()), len(values)
    far = float(t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(ddof=1) / n**0.5) if n > 1 else 0.0
    return mean, mean - far, mean + far
