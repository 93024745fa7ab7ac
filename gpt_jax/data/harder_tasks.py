"""The rows of `HardRecall`, `Needle` and `Track`; `gpt_jax.data.tasks` says what a row is."""

from __future__ import annotations

import functools
import itertools

import numpy as np
from jaxtyping import Int

from gpt_jax.config import HardRecall, Needle, Track
from gpt_jax.data.task import POWER, Task, integers, make_task


@make_task.register
def _hard_recall(config: HardRecall) -> Task:
    """Pairs, noise and updates at random places of the beginning, then each key and its newest value, as in Recall."""
    pairs, half, context = config.pairs, config.symbols // 2, config.context
    written = config.passes * pairs + config.updates
    slots = (config.length - context) // 2
    weight = np.arange(1, slots + 1) ** (POWER - 1)
    sizes = (half, config.symbols - half, config.passes * pairs, pairs, written + config.noise, slots)
    parts = np.cumsum(sizes)

    def draw(uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        to_keys, to_values, to_order, to_updates, to_places, to_slots, to_filling = np.split(uniform, parts, axis=1)
        B = len(uniform)
        keys = np.argsort(to_keys, axis=1)[:, :pairs]
        values = half + np.argsort(to_values, axis=1)[:, : pairs + config.updates]
        order = np.argsort(to_order.reshape(B, config.passes, pairs), axis=2).reshape(B, -1)
        changed = np.argsort(to_updates, axis=1)[:, : config.updates]
        final = values[:, :pairs].copy()
        np.put_along_axis(final, changed, values[:, pairs:], axis=1)
        shown = np.concatenate([np.take_along_axis(values, order, axis=1), values[:, pairs:]], axis=1)
        of_keys = np.take_along_axis(keys, np.concatenate([order, changed], axis=1), axis=1)

        is_noise = np.argsort(np.argsort(to_places, axis=1), axis=1) < config.noise
        width = np.where(is_noise, 1, 2)
        place = (np.cumsum(width, axis=1) - width)[~is_noise].reshape(B, written)
        slot = np.argsort(-np.log1p(-to_slots) / weight, axis=1)[:, :pairs]
        query = context + 2 * slot
        symbols = half + integers(to_filling, config.symbols - half)
        for at, what in ((place, of_keys), (place + 1, shown), (query, keys), (query + 1, final)):
            np.put_along_axis(symbols, at, what, axis=1)
        answers = np.zeros(symbols.shape, bool)
        np.put_along_axis(answers, query + 1, True, axis=1)
        return symbols, answers

    return Task(config.symbols, config.length, int(parts[-1]) + config.length + 1, draw)


@make_task.register
def _needle(config: Needle) -> Task:
    """`# K V` at random places of random symbols, which are multiples of three, then `# K V` of each key in another
    order; # is the last id.
    """
    half, length, needles, marker = config.symbols // 2, config.length, config.needles, config.symbols
    end = length + 1 - 3 * needles  # where the questions begin
    slots = end // 3
    parts = np.cumsum((half, needles, slots))

    def draw(uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        to_keys, to_values, to_slots, to_filling = np.split(uniform, parts, axis=1)
        keys = np.argsort(to_keys, axis=1)[:, :needles]
        values = half + integers(to_values, config.symbols - half)
        symbols = integers(to_filling, config.symbols)
        # Each needle has a slot of three positions. The slots' order is random, so that of the questions is, too.
        place = 3 * np.argsort(to_slots, axis=1)[:, :needles]
        asked = np.broadcast_to(end + 3 * np.arange(needles), place.shape)
        for at in (place, asked):
            for offset, what in enumerate((np.full(keys.shape, marker), keys, values)):
                np.put_along_axis(symbols, at + offset, what, axis=1)
        answers = np.zeros(symbols.shape, bool)
        np.put_along_axis(answers, asked + 2, True, axis=1)
        return symbols, answers

    return Task(config.symbols + 1, length, int(parts[-1]) + length + 1, draw)


@make_task.register
def _track(config: Track) -> Task:
    """The elements are the inputs, and the product of all elements so far is the target at each of them: at the first
    one the element itself.
    """
    table = products(config.group)

    def draw(uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        elements = integers(uniform, len(table))
        states = elements.copy()
        for t in range(1, elements.shape[1]):
            states[:, t] = table[states[:, t - 1], elements[:, t]]
        return elements, states

    return Task(len(table), config.length, config.length, draw, follows=False)


@functools.cache
def products(group: str) -> Int[np.ndarray, "N N"]:
    """The table of a group: `table[a, b]` is a, then b. Element 0 changes nothing."""
    if group == "parity":
        return np.array([[0, 1], [1, 0]])
    permutations = list(itertools.permutations(range(5)))
    number = {permutation: i for i, permutation in enumerate(permutations)}
    return np.array([[number[tuple(b[i] for i in a)] for b in permutations] for a in permutations])
