"""Rows of a stream against a walk through its documents, token by token."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from gpt_jax.data.rows import Batch, FixedRows, ShuffledRows, Stream

END = 99

DOCUMENTS = st.lists(st.integers(1, 12), min_size=1, max_size=8)


def make_stream(lengths: list[int], ended: bool) -> tuple[Stream, list[list[int]]]:
    """A stream of documents of the given lengths, and the documents; every token but END occurs once."""
    documents, first = [], 100
    for length in lengths:
        documents.append(list(range(first, first + length)))
        first += length
    tokens, starts = [], []
    for document in documents:
        starts.append(len(tokens))
        tokens += [END, *document] if ended else document
    tokens += [END] if ended else []
    return Stream(np.array(tokens, np.uint16), np.array(starts, np.int64), ended), documents


def everything(rows: FixedRows | ShuffledRows, first: int = 0) -> Batch:
    assert rows.count is not None
    return rows.gather(np.arange(first, first + rows.count))


@hypothesis.given(DOCUMENTS, st.integers(1, 9))
def test_every_token_of_ended_documents_is_a_target_exactly_once(lengths: list[int], length: int) -> None:
    stream, documents = make_stream(lengths, ended=True)
    batch = everything(FixedRows(stream, length, segmented=True))
    assert batch.targets[batch.weights > 0].tolist() == [token for document in documents for token in [*document, END]]
    assert stream.counted_targets == batch.weights.sum()


@hypothesis.given(DOCUMENTS.filter(lambda lengths: sum(lengths) > 1), st.integers(1, 9))
def test_without_an_end_of_text_every_token_with_a_context_is_a_target_exactly_once(
    lengths: list[int], length: int
) -> None:
    stream, documents = make_stream(lengths, ended=False)
    batch = everything(FixedRows(stream, length, segmented=True))
    assert batch.targets[batch.weights > 0].tolist() == [token for document in documents for token in document[1:]]
    assert stream.counted_targets == batch.weights.sum()


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    DOCUMENTS.filter(lambda lengths: sum(lengths) > 1), st.integers(1, 9), st.booleans(), st.integers(0, 3)
)
def test_targets_follow_inputs_of_their_own_document_whose_positions_count_from_its_start(
    lengths: list[int], length: int, ended: bool, epoch: int
) -> None:
    stream, documents = make_stream(lengths, ended)
    rows = ShuffledRows(stream, length, segmented=True, seed=7)
    batch = everything(rows, epoch * rows.count)
    owner = {token: number for number, document in enumerate(documents) for token in document}
    assert batch.segments is not None and batch.positions is not None
    for tokens, targets, weights, segments, positions in zip(*batch, strict=True):
        current, place, seen = None, 0, 0
        for i, token in enumerate(tokens):
            if not weights[i] and targets[i] == token == 0:
                assert (segments[i], positions[i]) == (0, 0)
                continue
            # An END, or without ENDs another owner, starts a document.
            begins = token == END if ended else owner[token] != current
            if begins or i == 0:
                place, seen = 0, seen + 1
            current = owner[token] if token != END else None
            assert (segments[i], positions[i]) == (seen, place)
            place += 1
            if weights[i] and token != END and targets[i] != END:
                assert owner[targets[i]] == owner[token]
            elif not weights[i]:
                assert not ended and owner[targets[i]] != owner[token]


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.integers(2, 90), st.integers(1, 17), st.integers(0, 2**64 - 1))
def test_the_first_epoch_is_whole_and_later_ones_miss_less_than_a_row(count: int, length: int, seed: int) -> None:
    stream = Stream(np.arange(100, 100 + count, dtype=np.uint16), np.zeros(1, np.int64), ended=False)
    rows = ShuffledRows(stream, length, segmented=False, seed=seed)
    for epoch in range(4):
        batch = everything(rows, epoch * rows.count)
        assert batch.segments is None and batch.positions is None
        counted = batch.weights > 0
        targets = np.sort(batch.targets[counted])
        assert len(set(targets.tolist())) == len(targets), "a target came twice in one epoch"
        assert (batch.tokens[counted] + 1 == batch.targets[counted]).all()
        assert counted.any(axis=1).all(), "a row has no target"
        missing = set(range(101, 100 + count)) - set(targets.tolist())
        assert len(missing) < length and (epoch > 0 or not missing)
        assert missing == set(range(101, 101 + len(missing)))


def test_epochs_differ_in_order_and_cut_and_seeds_differ_in_order() -> None:
    stream = Stream(np.arange(1000, dtype=np.uint16), np.zeros(1, np.int64), ended=False)
    rows = ShuffledRows(stream, 8, segmented=False, seed=3)
    first, second = everything(rows), everything(rows, rows.count)
    starts = lambda batch: sorted(batch.tokens[:, 0].tolist())  # noqa: E731
    assert first.tokens[:, 0].tolist() != sorted(first.tokens[:, 0].tolist())
    assert starts(first) == list(range(0, 999, 8))
    assert rows.offset(0) == 0 and len({rows.offset(epoch) for epoch in range(1, 50)}) == 8
    assert starts(first) != starts(second)
    other = everything(ShuffledRows(stream, 8, segmented=False, seed=4))
    assert starts(other) == starts(first) and not np.array_equal(other.tokens, first.tokens)


def test_a_row_is_a_function_of_its_number_alone() -> None:
    stream, _ = make_stream([5, 9, 3, 40], ended=True)
    one, two = (ShuffledRows(stream, 4, segmented=True, seed=11) for _ in range(2))
    numbers = np.array([40, 3, 3, 17, 0])
    whole = one.gather(np.arange(41))
    picked = two.gather(numbers)
    for all_rows, some in zip(whole, picked, strict=True):
        np.testing.assert_array_equal(all_rows[numbers], some)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_ids_of_every_storage_type_come_back_as_int32(dtype: type) -> None:
    largest = min(np.iinfo(dtype).max, 10**6)
    stream = Stream(np.array([1, largest, 2], dtype), np.zeros(1, np.int64), ended=False)
    batch = FixedRows(stream, 4, segmented=False).gather(np.arange(1))
    assert batch.tokens.dtype == batch.targets.dtype == np.int32 and batch.weights.dtype == np.float32
    assert batch.tokens.tolist() == [[1, largest, 0, 0]] and batch.targets.tolist() == [[largest, 2, 0, 0]]
    assert batch.weights.tolist() == [[1, 1, 0, 0]]
