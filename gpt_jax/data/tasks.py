"""Synthetic tasks: each row is a function of (seed, row number), and only its answers count as targets.

A row of T positions is a sequence of T + 1 symbols; weight 1 marks the targets that the symbols before them determine.
The task decides T. Symbols are written as letters (A, B, C … in the order of their ids), so that people can read rows
and type prompts.

The validation set is the same for every seed, and so is the tuning set. Both are drawn independently of the training
rows, so a task with few possible rows (for example 3 symbols in sequences of 6: 729) has the same rows in all three.
"""

import hashlib
import itertools
import json
import string

import numpy as np

from gpt_jax.config import Copy, DataConfig, Induction, Recall, Sort, require
from gpt_jax.config.conversion import to_dict
from gpt_jax.config.data import HeldOut
from gpt_jax.data import harder_tasks  # noqa: F401  (registers its tasks)
from gpt_jax.data.batches import Data
from gpt_jax.data.rows import MASK64, Batch
from gpt_jax.data.task import POWER, Task, integers
from gpt_jax.data.task import make_task as make_task
from gpt_jax.data.tokenizer import CharacterTokenizer

DEFINITION = 1  # The version of all tasks: increase it when a task draws other rows.

# The number of the first row of what is held out. Training rows are numbered from 0.
FIRST_HELD_OUT: dict[HeldOut, int] = {"validation": 2**63, "tuning": 2**62}


class TaskRows:
    """The rows of a task. Row i is drawn with the random key (`key`, `first` + i); `count` None means endless rows."""

    def __init__(self, task: Task, key: int, first: int, count: int | None):
        self._task, self._key, self._first, self.count = task, key & MASK64, first, count
        self.length = task.length

    def gather(self, numbers: np.ndarray) -> Batch:
        uniform = np.stack([self._uniform(int(number)) for number in numbers])
        symbols, answers = self._task.draw(uniform)
        symbols = symbols.astype(np.int32)
        if not self._task.follows:
            return Batch(symbols, answers.astype(np.int32), np.ones(symbols.shape, np.float32))
        return Batch(symbols[:, :-1], symbols[:, 1:], answers[:, 1:].astype(np.float32))

    def _uniform(self, number: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(key=np.array([self._key, self._first + number], np.uint64)))
        return generator.random(self._task.numbers)


def open_task(config: DataConfig, context_length: int, seed: int) -> Data:
    """Returns the endless training rows of a task, drawn from `seed`, and its fixed validation or tuning rows.

    Raises:
      ConfigError: the rows of the task are longer than `context_length`.
    """
    task, name = make_task(config), type(config).__name__
    require(
        task.length <= context_length,
        f"model.context_length ({context_length}) is shorter than the rows of {name}: set it to {task.length} or more",
    )
    definition = {key: value for key, value in to_dict(config).items() if key != "seed"}
    if config.held_out == "validation":
        del definition["held_out"]  # The hashes of earlier runs lack it.
    held_out = TaskRows(task, 0, first=FIRST_HELD_OUT[config.held_out], count=definition["validation_rows"])
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


@make_task.register
def _copy(config: Copy) -> Task:
    """`B A C | B A C`: a sequence, a separator (the last id), and the same sequence as the answer."""
    count = config.length

    def draw(uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        symbols = integers(uniform, config.symbols)
        separator = np.full((len(symbols), 1), config.symbols)
        return _answer(np.concatenate([symbols, separator], axis=1), symbols)

    return Task(config.symbols + 1, 2 * count, count, draw)


@make_task.register
def _sort(config: Sort) -> Task:
    """`C B A B A B A A B B B C`: a sequence and the same symbols, sorted; its length is fixed, so no separator."""

    def draw(uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        symbols = integers(uniform, config.symbols)
        return _answer(symbols, np.sort(symbols, axis=1))

    return Task(config.symbols, 2 * config.length - 1, config.length, draw)


@make_task.register
def _induction(config: Induction) -> Task:
    """`C A B C A B C`: a repeated sequence of distinct symbols; after the first repeated one, the next is known."""

    def draw(uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        choices = config.longest_period - config.shortest_period + 1
        period = config.shortest_period + integers(uniform[:, :1], choices)
        place = np.arange(config.length + 1)
        symbols = np.take_along_axis(np.argsort(uniform[:, 1:], axis=1), place % period, axis=1)
        return symbols, place > period

    return Task(config.symbols, config.length, 1 + config.symbols, draw)


@make_task.register
def _recall(config: Recall) -> Task:
    """`config.pairs` pairs of a key and a value, then each key once more, followed by its value as the answer.

    This is multi-query associative recall (Arora et al. 2023, "Zoology", arXiv:2312.04927). As there, keys come from
    the lower half of the symbols and values from the upper half, both without repetition, and a query falls into slot i
    (two positions wide) with a probability proportional to (i + 1)^(−0.99). Unlike there, the answer is part of the
    sequence, as the token after the query, and random values fill the other positions; without keys among them, the
    filling cannot assign another value to a key.
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
        # Exponential waiting times with these rates, sorted, are weighted draws without replacement.
        slot = np.argsort(-np.log1p(-to_slots) / weight, axis=1)[:, :pairs]
        symbols = keys_from + integers(to_filling, config.symbols - keys_from)
        symbols[:, 0 : 2 * pairs : 2], symbols[:, 1 : 2 * pairs : 2] = keys, values
        query = 2 * pairs + 2 * slot
        np.put_along_axis(symbols, query, keys, axis=1)
        np.put_along_axis(symbols, query + 1, values, axis=1)
        answers = np.zeros(symbols.shape, bool)
        np.put_along_axis(answers, query + 1, True, axis=1)
        return symbols, answers

    return Task(config.symbols, length, int(parts[-1]) + length + 1, draw)


def letters(count: int) -> str:
    """Returns `count` symbols in the order of their ids: A to Z, a to z, then other letters by code point."""
    known = string.ascii_uppercase + string.ascii_lowercase
    rest = (letter for letter in map(chr, range(0xC0, 0x110000)) if letter.isalpha())
    return "".join(itertools.islice(itertools.chain(known, rest), count))


def _answer(question: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Concatenates question and answer; the mask marks the answer."""
    symbols = np.concatenate([question, answer], axis=1)
    return symbols, np.broadcast_to(np.arange(symbols.shape[1]) >= question.shape[1], symbols.shape)
