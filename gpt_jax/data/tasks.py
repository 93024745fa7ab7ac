"""Synthetic tasks: each row is drawn from (seed, number) alone, and only its answers count.

A row of T places is a sequence of T + 1 symbols; the weights mark the targets that the symbols before them determine. T
is what the task needs. Symbols are written as letters (A, B, C …, in the order of their ids), so that a row can be read
and a prompt typed.

The validation set is the same for every seed. Its rows are drawn apart from the training rows, but a task with few
possible rows (three letters in rows of six: 729) has the same ones in both.
"""

import functools
import hashlib
import itertools
import json
import string
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpt_jax.config import Copy, DataConfig, Induction, Recall, Sort, require
from gpt_jax.config.conversion import to_dict
from gpt_jax.data.batches import Data
from gpt_jax.data.rows import MASK64, Batch
from gpt_jax.data.tokenizer import CharacterTokenizer

DEFINITION = 1  # Raise it when what a task draws changes.
POWER = 0.01  # Zoology's exponent: queries crowd towards the pairs.

# (B, n) numbers in [0, 1) → symbols (B, T + 1) and which of them are answers.
Draw = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Task(NamedTuple):
    """A task of V = `vocab_size` symbols whose rows of T = `length` each come from `numbers` uniform random numbers."""

    vocab_size: int
    length: int
    numbers: int
    draw: Draw


class TaskRows:
    """The rows of a task, numbered from `first` in the sequence of rows that belongs to `key`."""

    def __init__(self, task: Task, key: int, first: int, count: int | None):
        self._task, self._key, self._first, self.count = task, key & MASK64, first, count
        self.length = task.length

    def gather(self, numbers: np.ndarray) -> Batch:
        uniform = np.stack([self._uniform(int(number)) for number in numbers])
        symbols, answers = self._task.draw(uniform)
        symbols = symbols.astype(np.int32)
        return Batch(symbols[:, :-1], symbols[:, 1:], answers[:, 1:].astype(np.float32))

    def _uniform(self, number: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(key=np.array([self._key, self._first + number], np.uint64)))
        return generator.random(self._task.numbers)


def open_task(config: DataConfig, context_length: int, seed: int) -> Data:
    """The endless training rows of a task and its validation rows.

    Raises:
      ConfigError: the model's context is shorter than the task's rows.
    """
    task, name = make_task(config), type(config).__name__
    require(
        task.length <= context_length,
        f"model.context_length ({context_length}) is shorter than the rows of {name}: set it to {task.length} or more",
    )
    definition = {key: value for key, value in to_dict(config).items() if key != "seed"}
    held_out = TaskRows(task, 0, first=2**63, count=definition["validation_rows"])
    assert held_out.count is not None
    return Data(
        train=TaskRows(task, seed, first=0, count=None),
        held_out=held_out,
        tokenizer=CharacterTokenizer(letters(task.vocab_size)),
        vocab_size=task.vocab_size,
        content_hash=hashlib.sha256(json.dumps([DEFINITION, definition], sort_keys=True).encode()).hexdigest(),
        is_task=True,
        train_tokens=None,
        validation_tokens=int(held_out.gather(np.arange(held_out.count)).weights.sum()),
        validation_bytes=None,
    )


@functools.singledispatch
def make_task(config: DataConfig) -> Task:
    """The task of a configuration; `make_task.register` adds one."""
    raise TypeError(f"{type(config).__name__} is no data that is known: register it with gpt_jax.data.tasks.make_task.")


@make_task.register
def _copy(config: Copy) -> Task:
    """`B A C | B A C`: the separator has the last id."""
    count = config.length

    def draw(uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        symbols = _integers(uniform, config.symbols)
        separator = np.full((len(symbols), 1), config.symbols)
        return _answer(np.concatenate([symbols, separator], axis=1), symbols)

    return Task(config.symbols + 1, 2 * count, count, draw)


@make_task.register
def _sort(config: Sort) -> Task:
    """`C B A B A B A A B B B C`, without a separator: every question is as long."""

    def draw(uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        symbols = _integers(uniform, config.symbols)
        return _answer(symbols, np.sort(symbols, axis=1))

    return Task(config.symbols, 2 * config.length - 1, config.length, draw)


@make_task.register
def _induction(config: Induction) -> Task:
    """`C A B C A B C`: the symbols of a period differ, so after one of them returned, the next is known."""

    def draw(uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        choices = config.longest_period - config.shortest_period + 1
        period = config.shortest_period + _integers(uniform[:, :1], choices)
        place = np.arange(config.length + 1)
        symbols = np.take_along_axis(np.argsort(uniform[:, 1:], axis=1), place % period, axis=1)
        return symbols, place > period

    return Task(config.symbols, config.length, 1 + config.symbols, draw)


@make_task.register
def _recall(config: Recall) -> Task:
    """K pairs `k v`, then each key once more and, as the answer, its value; random values fill the places between.

    As in Zoology, keys are the lower half of the symbols and values the upper, both without repetition, and a query
    stands in slot i (of two places) with a probability in proportion to (i + 1)^(−0.99). Otherwise than there, the
    answer is itself part of the sequence, as the next token, and the filling has no keys, so that it binds no key anew.
    """
    pairs, length = config.pairs, config.length
    keys_from = config.symbols // 2
    slots = (length - 2 * pairs) // 2
    weight = np.arange(1, slots + 1) ** (POWER - 1)
    parts = np.cumsum([keys_from, config.symbols - keys_from, slots])

    def draw(uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        to_keys, to_values, to_slots, to_filling = np.split(uniform, parts, axis=1)
        keys = np.argsort(to_keys, axis=1)[:, :pairs]
        values = keys_from + np.argsort(to_values, axis=1)[:, :pairs]
        # The first K of exponential waiting times with these rates are K draws without replacement.
        slot = np.argsort(-np.log1p(-to_slots) / weight, axis=1)[:, :pairs]
        symbols = keys_from + _integers(to_filling, config.symbols - keys_from)
        symbols[:, 0 : 2 * pairs : 2], symbols[:, 1 : 2 * pairs : 2] = keys, values
        query = 2 * pairs + 2 * slot
        np.put_along_axis(symbols, query, keys, axis=1)
        np.put_along_axis(symbols, query + 1, values, axis=1)
        answers = np.zeros(symbols.shape, bool)
        np.put_along_axis(answers, query + 1, True, axis=1)
        return symbols, answers

    return Task(config.symbols, length, int(parts[-1]) + length + 1, draw)


def letters(count: int) -> str:
    """The `count` symbols in the order of their ids: A to Z, a to z, then other letters by code point."""
    known = string.ascii_uppercase + string.ascii_lowercase
    rest = (letter for letter in map(chr, range(0xC0, 0x110000)) if letter.isalpha())
    return "".join(itertools.islice(itertools.chain(known, rest), count))


def _integers(uniform: np.ndarray, bound: int) -> np.ndarray:
    """Integers in [0, bound)."""
    return (uniform * bound).astype(np.int64)


def _answer(question: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    symbols = np.concatenate([question, answer], axis=1)
    return symbols, np.broadcast_to(np.arange(symbols.shape[1]) >= question.shape[1], symbols.shape)
