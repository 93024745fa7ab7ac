"""Each task's rows against its rule, stated anew; answers are what the symbols before them determine."""

import dataclasses

import numpy as np
import pytest

from gpt_jax.config import Copy, DataConfig, Induction, Recall, Sort
from gpt_jax.config.errors import ConfigError
from gpt_jax.data import open_data
from gpt_jax.data.tasks import make_task

ROWS = 200


def rows_of(config: DataConfig, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The sequences (ROWS, T + 1) and which places are answers."""
    batch = open_data(config, 128, seed).batch(0, ROWS)
    assert batch.segments is None and batch.positions is None
    np.testing.assert_array_equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    sequences = np.concatenate([batch.tokens, batch.targets[:, -1:]], axis=1)
    return sequences, np.concatenate([np.zeros((ROWS, 1)), batch.weights], axis=1) == 1


def test_copy_repeats_what_stands_before_the_separator() -> None:
    sequences, answers = rows_of(Copy(symbols=5, length=7))
    assert sequences.shape == (ROWS, 15)
    assert (sequences[:, 7] == 5).all() and (sequences[:, :7] < 5).all()
    np.testing.assert_array_equal(sequences[:, :7], sequences[:, 8:])
    assert (answers == (np.arange(15) >= 8)).all()


def test_sort_sorts_and_has_every_letter() -> None:
    sequences, answers = rows_of(Sort(symbols=3, length=6))
    assert sequences.shape == (ROWS, 12)
    np.testing.assert_array_equal(np.sort(sequences[:, :6]), sequences[:, 6:])
    assert (answers == (np.arange(12) >= 6)).all()
    assert set(sequences[:, :6].ravel().tolist()) == {0, 1, 2}


def test_induction_answers_are_what_followed_the_only_other_kind_of_occurrence() -> None:
    sequences, answers = rows_of(Induction(symbols=9, length=20, shortest_period=3, longest_period=8))
    periods = set()
    for sequence, answer in zip(sequences.tolist(), answers, strict=True):
        followers: dict[int, int] = {}
        for place in range(1, len(sequence)):
            known = sequence[place - 1] in followers
            assert answer[place] == known
            if known:
                assert followers[sequence[place - 1]] == sequence[place]
            followers[sequence[place - 1]] = sequence[place]
        periods.add(len(set(sequence)))
    assert periods == set(range(3, 9))


def test_recall_asks_for_every_key_once_and_binds_none_anew() -> None:
    pairs, length = 4, 40
    sequences, answers = rows_of(Recall(symbols=20, pairs=pairs, length=length))
    gaps = []
    for sequence, answer in zip(sequences.tolist(), answers, strict=True):
        keys, values = sequence[0 : 2 * pairs : 2], sequence[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert max(keys) < 10 <= min(values) and max(values) < 20
        bound = dict(zip(keys, values, strict=True))
        asked = [place for place in range(2 * pairs, length + 1) if sequence[place] < 10]
        assert sorted(sequence[place] for place in asked) == sorted(keys)
        assert np.flatnonzero(answer).tolist() == [place + 1 for place in asked]
        assert all(sequence[place + 1] == bound[sequence[place]] for place in asked)
        gaps += [(place - 2 * pairs) // 2 for place in asked]
    # Zoology's power law crowds queries towards the pairs: half of its mass lies in the first of the sixteen slots.
    assert np.mean(np.array(gaps) < 4) > 0.5 > np.mean(np.array(gaps) >= 8)


def test_recall_of_the_tightest_length_fills_every_slot() -> None:
    sequences, answers = rows_of(Recall(symbols=6, pairs=3, length=12))
    assert answers.sum() == 3 * ROWS and (answers.sum(axis=0)[[7, 9, 11]] == ROWS).all()


@pytest.mark.parametrize("config", [Copy(), Sort(), Induction(), Recall()])
def test_rows_differ_by_number_seed_and_split_and_are_spread_evenly(config: DataConfig) -> None:
    data, other = open_data(config, 128, 0), open_data(config, 128, 1)
    one, two = data.batch(0, 64), other.batch(0, 64)
    assert not np.array_equal(one.tokens, data.batch(1, 64).tokens)
    assert not np.array_equal(one.tokens, two.tokens)
    held_out = next(data.validation(64))
    assert not np.array_equal(held_out.tokens, one.tokens)
    np.testing.assert_array_equal(held_out.tokens, next(other.validation(64)).tokens)
    first = data.batch(0, 4096).tokens[:, 0]
    choices = len(set(first.tolist()))
    assert np.bincount(first).max() < 1.5 * 4096 / choices


@pytest.mark.parametrize("config", [Copy(), Sort(symbols=30), Induction(), Recall()])
def test_tuning_rows_are_neither_trained_on_nor_validation_rows(config: DataConfig) -> None:
    plain = open_data(config, 128, 0)
    tuning, other = (open_data(dataclasses.replace(config, held_out="tuning"), 128, seed) for seed in (0, 1))
    np.testing.assert_array_equal(tuning.batch(3, 64).tokens, plain.batch(3, 64).tokens)
    held_out = next(tuning.validation(256)).tokens
    np.testing.assert_array_equal(held_out, next(other.validation(256)).tokens)
    rows = set(map(bytes, held_out))
    for others in (next(plain.validation(256)), plain.batch(0, 1024), other.batch(0, 1024)):
        assert not rows & set(map(bytes, others.tokens))
    assert tuning.content_hash != plain.content_hash


def test_rows_are_as_long_as_the_task_and_a_context_that_is_shorter_is_refused() -> None:
    assert open_data(Copy(length=10), 64, 0).row_length == 20
    with pytest.raises(
        ConfigError, match=r"model.context_length \(19\) is shorter than the rows of Copy: set it to 20"
    ):
        open_data(Copy(length=10), 19, 0)


def test_rows_read_as_letters() -> None:
    data = open_data(Sort(symbols=3, length=6), 16, 0)
    assert data.tokenizer.decode(data.batch(0, 1).tokens[0]).strip("ABC") == ""
    assert data.tokenizer.encode("CAB") == [2, 0, 1] and data.vocab_size == 3
    many = open_data(Copy(symbols=5000), 64, 0)
    assert many.vocab_size == many.tokenizer.vocab_size == 5001


def test_the_content_hash_is_the_definition_without_the_seed() -> None:
    hashes = [open_data(config, 128, 0).content_hash for config in (Copy(), Copy(symbols=31), Copy(length=15), Sort())]
    assert len(set(hashes)) == 4
    assert open_data(Copy(seed=3), 128, 7).content_hash == hashes[0]
    # As earlier code computed it, so that its runs resume.
    assert hashes[0] == "316d81d88d5011d8871c3e0ae1c9dd2855d705faae40f11d434d507c5919661a"


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        (Copy, {"length": 0}, "data.length must be positive"),
        (Sort, {"symbols": 0}, "data.symbols must be positive"),
        (Sort, {"validation_rows": 0}, "data.validation_rows must be positive"),
        (Induction, {"shortest_period": 25}, "data.shortest_period"),
        (Induction, {"longest_period": 48}, "data.longest_period"),
        (Induction, {"symbols": 23}, "must be at most data.symbols"),
        (Recall, {"pairs": 33, "length": 200}, "half of data.symbols"),
        (Recall, {"pairs": 17}, "data.length must be at least 68"),
    ],
)
def test_impossible_tasks_are_refused_at_construction(kind: type, settings: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        kind(**settings)


def test_a_kind_of_data_that_is_not_known_is_named() -> None:
    class Other(DataConfig):
        pass

    del DataConfig.choices["Other"]
    with pytest.raises(TypeError, match="Other is not a registered task"):
        make_task(Other())
