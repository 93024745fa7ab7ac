"""The whole validation set, whatever the batch size, with honest error bars."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from gpt_jax.config import Embedding, Learned, Text
from gpt_jax.data import Data, open_data
from gpt_jax.model.gpt import GPT
from gpt_jax.runs.evaluate import evaluate_run
from gpt_jax.runs.load import load_run
from gpt_jax.runs.train import train
from gpt_jax.training.evaluate import make_evaluate, summarize
from gpt_jax.training.resolve import resolve
from gpt_jax.training.sharding import make_mesh, replicate
from tests.tiny import tiny_config


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Text:
    monkeypatch.setenv("GPT_JAX_CACHE", str(tmp_path / "cache"))
    words = np.random.default_rng(0).choice(["äh", "the", "GPT", "learns\n", "to", "sing"], 700)
    (tmp_path / "text.txt").write_text(" ".join(words))
    return Text(path=str(tmp_path / "text.txt"), validation_fraction=0.2)


def opened(data_config: Any) -> tuple[GPT, Any, Data]:
    config = tiny_config(data=data_config)
    data = open_data(config.data, config.model.context_length, config.data_seed)
    model = GPT(resolve(config, data).model)
    return model, model.init(jax.random.key(1), jnp.zeros((1, 4), jnp.int32)), data


def brute_force(model: GPT, params: Any, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Losses and hits of every target, one row at a time, in NumPy and float64."""
    losses, hits = [], []
    for batch in data.validation(1):
        segments = None if batch.segments is None else jnp.asarray(batch.segments)
        positions = None if batch.positions is None else jnp.asarray(batch.positions)
        logits = model.apply(params, jnp.asarray(batch.tokens), segments=segments, positions=positions)
        logits = np.asarray(logits, np.float64)[0]
        for place in np.flatnonzero(batch.weights[0]):
            row, target = logits[place], batch.targets[0, place]
            losses.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[target])
            hits.append(row.argmax() == target)
    return np.array(losses), np.array(hits)


def test_loss_is_the_mean_over_every_target(text: Text) -> None:
    model, params, data = opened(text)
    losses, hits = brute_force(model, params, data)
    mesh = make_mesh()
    result = make_evaluate(model, data, 8, mesh)(replicate(params, mesh))
    assert result["tokens"] == len(losses) == data.validation_tokens
    assert result["loss"] == pytest.approx(losses.mean(), abs=2e-6)
    assert result["accuracy"] == pytest.approx(hits.mean())
    assert result["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    held_out = (Path(text.path or "").read_bytes())[-(data.validation_bytes or 0) :]
    assert len(held_out) == data.validation_bytes
    assert result["bits_per_byte"] == pytest.approx(losses.sum() / len(held_out) / math.log(2), rel=1e-5)


def test_documents_are_kept_apart_and_positions_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_JAX_CACHE", str(tmp_path / "cache"))
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text(f"document {number} ")
    documents = Text(path=str(tmp_path / "*.txt"), validation_fraction=0.5)
    config = tiny_config(data=documents, model={"embedding": Embedding(position=Learned())})
    data = open_data(config.data, config.model.context_length, config.data_seed)
    model = GPT(resolve(config, data).model)
    params = model.init(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))
    params = jax.tree.map(lambda leaf: 30 * leaf, params)  # an untrained model hardly looks at positions
    losses, _ = brute_force(model, params, data)
    mesh = make_mesh()
    result = make_evaluate(model, data, 4, mesh)(replicate(params, mesh))
    assert max(int(batch.segments.max()) for batch in data.validation(1) if batch.segments is not None) > 1
    assert result["loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_no_number_depends_on_batch_size_or_devices(text: Text) -> None:
    model, params, data = opened(text)
    results = []
    for batch_size, devices in ((1, 1), (7, 1), (8, 4), (13, 2), (1000, 4)):
        mesh = make_mesh(jax.devices()[:devices])
        results.append(make_evaluate(model, data, batch_size, mesh)(replicate(params, mesh)))
    # A standard error is made of differences between rows, which keep the rounding of the losses that they are made of.
    first, sizes = results[0], {f"{name}_standard_error": value for name, value in results[0].items()}
    bounds = {name: 2e-6 * (sizes[name] if name in sizes else value) for name, value in first.items()}
    for result in results[1:]:
        assert result.keys() == first.keys() and result["tokens"] == first["tokens"]
        for name, value in result.items():
            assert abs(value - first[name]) <= bounds[name], name


def test_tasks_have_accuracy_and_no_bytes() -> None:
    model, params, data = opened(tiny_config().data)
    mesh = make_mesh()
    result = make_evaluate(model, data, 8, mesh)(replicate(params, mesh))
    assert "bits_per_byte" not in result and 0 <= result["accuracy"] <= 1
    assert result["tokens"] == sum(int((batch.weights > 0).sum()) for batch in data.validation(1))


def test_standard_error_of_equal_rows_is_that_of_their_means() -> None:
    generator = np.random.default_rng(0)
    means = generator.normal(3.0, 0.5, 40)
    weight = np.full(40, 16.0)
    result = summarize(means * weight, weight / 2, weight, text_bytes=640)
    assert result["loss_standard_error"] == pytest.approx(means.std(ddof=1) / math.sqrt(40))
    assert result["accuracy_standard_error"] == 0
    assert result["perplexity_standard_error"] == pytest.approx(math.exp(means.mean()) * result["loss_standard_error"])
    assert result["bits_per_byte_standard_error"] == pytest.approx(result["loss_standard_error"] / math.log(2))


def test_standard_error_is_the_spread_over_validation_sets() -> None:
    """Rows of different weights whose tokens are correlated: the naive error over tokens would be 3 times too small."""
    generator = np.random.default_rng(1)

    def sample() -> tuple[np.ndarray, np.ndarray]:
        weight = generator.integers(4, 16, 200).astype(float)
        level = generator.normal(3.0, 1.0, 200)
        return np.array([generator.normal(m, 0.1, int(n)).sum() for m, n in zip(level, weight, strict=True)]), weight

    results = [summarize(loss, loss * 0, weight, None) for loss, weight in (sample() for _ in range(300))]
    spread = np.std([r["loss"] for r in results])
    assert np.mean([r["loss_standard_error"] for r in results]) == pytest.approx(spread, rel=0.12)


def test_rows_of_padding_do_not_count() -> None:
    loss, weight = np.array([6.0, 2.0, 0.0]), np.array([2.0, 1.0, 0.0])
    assert summarize(loss, loss, weight, 3) == summarize(loss[:2], loss[:2], weight[:2], 3)


def test_one_row_has_no_standard_error() -> None:
    result = summarize(np.array([6.0]), np.array([1.0]), np.array([2.0]), None)
    assert result["loss"] == 3.0 and math.isnan(result["loss_standard_error"])


def test_an_empty_validation_set_is_an_error() -> None:
    with pytest.raises(ValueError, match="validation set has no targets"):
        summarize(np.zeros(2), np.zeros(2), np.zeros(2), 1)


def test_evaluating_a_run_gives_what_training_ended_with(text: Text, tmp_path: Path) -> None:
    config = tiny_config(steps=5, data=text)
    outcome = train(config, str(tmp_path / "run"), console=Console(quiet=True))
    step, result = evaluate_run(str(tmp_path / "run"))
    assert outcome.validation is not None
    assert step == 5 and result["loss"] == pytest.approx(outcome.validation["loss"], rel=1e-6)
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert written == {"step": 5, **result}
    # Another text under the same name is not what the run was trained on.
    Path(text.path or "").write_text("something else " * 300)
    with pytest.raises(ValueError, match="not the one that the run"):
        evaluate_run(str(tmp_path / "run"))


@pytest.mark.optimized
def test_a_scanned_run_opens_as_a_looped_model(text: Text, tmp_path: Path) -> None:
    config = tiny_config(steps=3, data=text, model={"scan": True})
    train(config, str(tmp_path / "scanned"), console=Console(quiet=True))
    looped = dataclasses.replace(config, model=dataclasses.replace(config.model, scan=False))
    train(looped, str(tmp_path / "looped"), console=Console(quiet=True))
    (_, ours, tokenizer), (_, theirs, _) = load_run(str(tmp_path / "scanned")), load_run(str(tmp_path / "looped"))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert tokenizer.decode(tokenizer.encode("ähm")) == "ähm"
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
