"""Rows of harder recall, needles and states against their rules, stated anew."""

import itertools

import numpy as np
import pytest

from gpt_jax.config import HardRecall, Needle, Track
from gpt_jax.config.errors import ConfigError
from gpt_jax.data import open_data

ROWS = 150


def rows_of(config) -> tuple[list[list[int]], list[list[int]]]:
    """The sequences of T + 1 symbols, and the places of the answers in each."""
    batch = open_data(config, 128, 0).batch(0, ROWS)
    sequences = np.concatenate([batch.tokens, batch.targets[:, -1:]], axis=1)
    return sequences.tolist(), [(np.flatnonzero(row) + 1).tolist() for row in batch.weights]


@pytest.mark.parametrize("more", [{}, {"noise": 5}, {"passes": 2}, {"updates": 2}, dict(noise=3, passes=3, updates=3)])
def test_hard_recall_asks_each_key_for_its_newest_value(more: dict[str, int]) -> None:
    config = HardRecall(symbols=16, pairs=3, length=40, **more)
    places: set[int] = set()
    for sequence, answers in zip(*rows_of(config), strict=True):
        context, known = sequence[: config.context], {}
        keys = [i for i, symbol in enumerate(context) if symbol < 8]
        for i in keys:
            known.setdefault(context[i], []).append(context[i + 1])
        assert len(keys) == config.passes * 3 + config.updates and len(known) == 3
        assert sum(len(values) > config.passes for values in known.values()) == config.updates
        for values in known.values():
            assert len({*values[: config.passes]}) == 1 and all(value >= 8 for value in values)
            assert values[-1] != values[0] or len(values) == config.passes
        assert {sequence[i - 1]: sequence[i] for i in answers} == {key: values[-1] for key, values in known.items()}
        assert len(answers) == 3 and min(answers) > config.context
        places |= set(keys)
    assert (max(places) - min(places) + 1 == len(places)) == (config.noise > 0)  # without noise, keys are two apart


def test_each_needle_is_asked_for_once_at_the_end() -> None:
    places, orders = set(), set()
    for needles in (1, 3):
        for sequence, answers in zip(*rows_of(Needle(symbols=20, needles=needles, length=33)), strict=True):
            markers = [i for i, symbol in enumerate(sequence) if symbol == 20]
            hidden, asked = markers[:needles], markers[needles:]
            assert asked == list(range(34 - 3 * needles, 34, 3)) and answers == [i + 2 for i in asked]
            found = {sequence[i + 1]: sequence[i + 2] for i in hidden}
            assert len(found) == needles and all(key < 10 <= value for key, value in found.items())
            assert {sequence[i + 1]: sequence[i + 2] for i in asked} == found
            places |= set(hidden)
            orders.add(tuple(list(found).index(sequence[i + 1]) for i in asked))
    assert len(orders) == 1 + 6 and set(range(0, 24, 3)) <= places


@pytest.mark.parametrize("group", ["parity", "s5"])
def test_states_are_the_products_so_far(group: str) -> None:
    batch = open_data(Track(group, length=9), 128, 0).batch(0, 20)
    assert (batch.weights == 1).all()
    permutations = list(itertools.permutations(range(5)))
    for elements, states in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        things, total = list(range(5)), 0
        for element, state in zip(elements, states, strict=True):
            total += element
            if group == "parity":
                assert state == total % 2
            else:
                things = [permutations[element][i] for i in things]
                assert permutations[state] == tuple(things)


@pytest.mark.parametrize(
    "kind, settings, said",
    [
        (HardRecall, {"pairs": 33}, "half of data.symbols"),
        (HardRecall, {"updates": 9}, "data.updates must lie"),
        (HardRecall, {"noise": -1}, "data.noise"),
        (HardRecall, {"length": 31}, "at least 32"),
        (Needle, {"needles": 33, "length": 200}, "half of data.symbols"),
        (Needle, {"length": 22}, "at least 23"),
        (Track, {"length": 0}, "data.length"),
    ],
)
def test_a_task_that_has_no_rows_is_refused(kind: type, settings: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        kind(**settings)
