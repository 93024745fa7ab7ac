"""What training relies on: batch(step) is pure, processes share one sequence, validation is one fixed set."""

import itertools
import random
from pathlib import Path

import jax
import numpy as np
import pytest

from gpt_jax.config import Bpe, Bytes, Characters, Copy, DataConfig, Recall, Text
from gpt_jax.data import Batch, Data, open_data

T = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of random words."""
    folder, words = tmp_path_factory.mktemp("texts"), random.Random(0)
    for number in range(40):
        text = " ".join(words.choice(["red", "green", "blüe", "one", "two"]) for _ in range(words.randrange(1, 60)))
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(params=["documents", "characters", "task"])
def data(request: pytest.FixtureRequest, folder: Path, cache: Path) -> Data:
    configs: dict[str, DataConfig] = {
        "documents": Text(path=str(folder), validation_fraction=0.3, tokenizer=Bytes()),
        "characters": Text(path=str(folder / "3.txt"), validation_fraction=0.3, tokenizer=Characters()),
        "task": Recall(symbols=8, pairs=2, length=T, validation_rows=13),
    }
    return open_data(configs[request.param], T, seed=5, cache_dir=cache, progress=False)


def join(batches: list[Batch]) -> Batch:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches)


def assert_same(one: Batch, two: Batch) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_shapes_and_types_are_those_of_every_batch(data: Data) -> None:
    batch = data.batch(3, 4)
    assert data.row_length == T
    assert batch.tokens.shape == batch.targets.shape == batch.weights.shape == (4, T)
    assert (batch.tokens.dtype, batch.targets.dtype, batch.weights.dtype) == (np.int32, np.int32, np.float32)
    assert 0 <= batch.tokens.min() and max(batch.tokens.max(), batch.targets.max()) < data.vocab_size
    for other in (data.batch(1000, 4), next(data.validation(4))):
        assert jax.tree.structure(other) == jax.tree.structure(batch)


def test_a_batch_is_a_function_of_seed_and_step_alone(data: Data) -> None:
    later = data.batch(7, 6)
    for step in (0, 7, 3):
        data.batch(step, 6)
    assert_same(data.batch(7, 6), later)


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_share_one_global_sequence(data: Data, processes: int) -> None:
    for step in (0, 5, 41):
        shares = [data.batch(step, 6, index, processes) for index in range(processes)]
        assert_same(join(shares), data.batch(step, 6))


def test_steps_of_any_batch_size_read_the_same_rows(data: Data) -> None:
    assert_same(join([data.batch(step, 2) for step in range(12)]), join([data.batch(step, 8) for step in range(3)]))


def test_prefetched_batches_are_those_of_their_steps_from_wherever_they_start(data: Data) -> None:
    made = list(data.batches(4, 30, 4))
    assert len(made) == 26
    for step, batch in zip(range(4, 30), made, strict=True):
        assert_same(batch, data.batch(step, 4))
    share = next(data.batches(9, 10, 4, process_index=1, process_count=2))
    assert_same(share, data.batch(9, 4, 1, 2))


def test_validation_is_the_same_set_whatever_the_batch_size_and_the_number_of_processes(data: Data) -> None:
    whole = join(list(data.validation(1)))
    assert len(whole.tokens) == data.validation_rows
    assert whole.weights.sum() == data.validation_tokens
    for size, processes in [(4, 1), (4, 2), (data.validation_rows, 1), (64, 4)]:
        slices = [list(data.validation(size, index, processes)) for index in range(processes)]
        assert len({len(part) for part in slices}) == 1, "the processes would wait for one another"
        batches = [join(list(shares)) for shares in zip(*slices, strict=True)]
        assert all(batch.tokens.shape == (size, T) for batch in batches)
        joined = join(batches)
        assert_same(jax.tree.map(lambda array: array[: data.validation_rows], joined), whole)
        filling = jax.tree.map(lambda array: array[data.validation_rows :], joined)
        assert all(not array.any() for array in jax.tree.leaves(filling))


def test_the_seed_orders_training_and_changes_nothing_else(folder: Path, cache: Path) -> None:
    config = Text(path=str(folder), validation_fraction=0.3)
    one, two = (open_data(config, T, seed, cache, progress=False) for seed in (1, 2))
    assert not np.array_equal(one.batch(0, 8).tokens, two.batch(0, 8).tokens)
    assert_same(join(list(one.validation(8))), join(list(two.validation(8))))
    assert one.content_hash == two.content_hash


def test_an_epoch_has_every_token_of_the_training_documents_once(folder: Path, cache: Path) -> None:
    data = open_data(Text(path=str(folder), validation_fraction=0.3), T, 0, cache, progress=False)
    assert data.train_rows is not None and data.validation_bytes is not None
    epoch = [data.batch(step, 1) for step in range(data.train_rows)]
    size = sum(file.stat().st_size for file in folder.iterdir())
    ends = sum(int((batch.targets[batch.weights > 0] == 256).sum()) for batch in [*epoch, *data.validation(1)])
    assert ends == 40
    assert data.train_tokens == sum(batch.weights.sum() for batch in epoch)
    assert data.train_tokens + data.validation_tokens == size + ends


def test_no_row_shows_one_document_to_another(folder: Path, cache: Path) -> None:
    data = open_data(Text(path=str(folder), validation_fraction=0.3), 64, 0, cache, progress=False)
    texts = [file.read_text(encoding="utf-8") for file in folder.iterdir()]
    shared_rows = 0
    for batch in itertools.islice(data.batches(0, 200, 4), 200):
        assert batch.segments is not None
        for tokens, segments in zip(batch.tokens, batch.segments, strict=True):
            numbers = sorted(set(segments.tolist()) - {0})
            shared_rows += len(numbers) > 1
            for number in numbers:
                ids = [index for index in tokens[segments == number].tolist() if index != 256]
                piece = bytes(ids).decode("utf-8", errors="ignore")
                assert any(piece in text for text in texts)
    assert shared_rows > 100


@pytest.mark.parametrize("tokenizer", [Bytes(), Characters(), Bpe(vocab_size=300)])
def test_validation_bytes_are_those_of_the_targets(folder: Path, cache: Path, tokenizer: object) -> None:
    for limit in (None, 50, 1):
        config = Text(path=str(folder), validation_fraction=0.3, tokenizer=tokenizer, validation_tokens=limit)
        data = open_data(config, T, 0, cache, progress=False)
        batches = list(data.validation(3))
        counted = [index for batch in batches for index in batch.targets[batch.weights > 0].tolist()]
        ends = {data.tokenizer.end_of_text}
        text = data.tokenizer.decode_bytes([index for index in counted if index not in ends])
        assert data.validation_bytes == len(text)
        assert data.validation_tokens == len(counted)
        if limit is not None and data.tokenizer.end_of_text is not None:
            assert len(counted) == limit


def test_what_cannot_be_shared_or_does_not_exist_is_refused(data: Data) -> None:
    with pytest.raises(ValueError, match="3 processes cannot share 4 rows evenly: choose a multiple of 3"):
        data.batch(0, 4, 0, 3)
    with pytest.raises(ValueError, match="cannot share"):
        next(data.validation(4, 0, 3))
    with pytest.raises(ValueError, match="there is no process 2"):
        data.batch(0, 4, 2, 2)
    with pytest.raises(ValueError, match="no batch for step -1"):
        data.batch(-1, 4)


def test_tasks_have_no_bytes_and_text_has(folder: Path, cache: Path) -> None:
    task = open_data(Copy(), 64, 0)
    assert task.is_task and task.validation_bytes is None and task.train_rows is None
    assert not open_data(Text(path=str(folder)), T, 0, cache, progress=False).is_task
