"""A run that averages its weights has for its model the mean of the weights of the same run without the average."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from gpt_jax.config import AverageConfig, Checkpoint, Config, Ema, Lora, Sgd, TailAverage
from gpt_jax.data import Batch, Data
from gpt_jax.runs import metrics
from gpt_jax.runs.evaluate import evaluate_run
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.load import load_run
from gpt_jax.runs.train import train
from tests.tiny import PROGRAMS, tiny_config
from tests.training.test_average import counted

STEPS = 6
QUIET = Console(quiet=True)


def with_average(config: Config, average: AverageConfig, every: int = STEPS) -> Config:
    train = dataclasses.replace(config.train, average=average)
    return dataclasses.replace(config, train=train, checkpoint=Checkpoint(every=every, keep=STEPS))


def changed(model: dict[str, Any] | None = None, adapter: Any = None, **changes: Any) -> Config:
    """A run that keeps the checkpoint of every step; `changes` are of `train`."""
    base = changes.pop("init_from", None)
    config = tiny_config(steps=STEPS, model=model, checkpoint=Checkpoint(every=1, keep=STEPS), init_from=base)
    blocks = tuple(dataclasses.replace(block, adapter=adapter) for block in config.model.blocks)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, blocks=blocks),
        train=dataclasses.replace(config.train, **changes),
    )


def params(folder: Path, step: int | None = None) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(load_run(folder, step)[1])]


def assert_mean_of(plain: Path, averaged: Path, average: AverageConfig, steps: Iterable[int] = (STEPS,)) -> None:
    """Of the checkpoints of `steps` of the averaged run."""
    weights = [params(plain, step) for step in range(1, STEPS + 1)]
    for step in steps:
        share = counted(average, step)
        for number, found in enumerate(params(averaged, step)):
            expected = sum(s * w[number].astype(np.float64) for s, w in zip(share, weights, strict=False))
            np.testing.assert_allclose(found, expected, atol=2e-7 + 1e-6 * np.abs(expected).max())


def losses(folder: Path, split: str) -> list[float]:
    return [record["loss"] for record in metrics.read(RunFolder(folder), split)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    train(changed(), folder, console=QUIET, programs=PROGRAMS)
    return folder


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("averaged") / "run"
    train(with_average(changed(), Ema(0.7), every=1), folder, console=QUIET, programs=PROGRAMS)
    return folder


def test_the_model_is_the_mean_and_training_goes_on_from_the_last_weights(plain: Path, averaged: Path) -> None:
    assert losses(averaged, "train") == pytest.approx(losses(plain, "train"), rel=1e-6)
    assert_mean_of(plain, averaged, Ema(0.7), range(1, STEPS + 1))
    assert not np.allclose(params(plain)[0], params(averaged)[0], atol=1e-3)


def test_what_is_evaluated_is_the_mean(plain: Path, averaged: Path) -> None:
    recorded = losses(averaged, "validation")
    assert evaluate_run(averaged)[1]["loss"] == pytest.approx(recorded[-1], rel=1e-6)
    assert abs(recorded[-1] - losses(plain, "validation")[-1]) > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"model": {"scan": True}, "accumulate": 2}, id="scanned-accumulated"),
        pytest.param({"parallel": "pmap"}, id="pmap"),
        pytest.param({"adapter": Lora(rank=2), "init_from": True}, id="adapter"),
    ],
)
def test_it_is_the_mean_however_the_run_is_executed(changes: dict[str, Any], plain: Path, tmp_path: Path) -> None:
    if "init_from" in changes:
        changes = changes | {"init_from": str(plain)}
    config, average = changed(**changes), TailAverage(0.5, STEPS)
    train(config, tmp_path / "plain", console=QUIET, programs=PROGRAMS)
    train(with_average(config, average), tmp_path / "averaged", console=QUIET, programs=PROGRAMS)
    assert_mean_of(tmp_path / "plain", tmp_path / "averaged", average)


def test_a_skipped_step_counts_with_the_weights_of_the_step_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Data.batch

    def poisoned(self: Data, step: int, *rest: Any) -> Batch:
        batch = whole(self, step, *rest)
        return batch._replace(weights=batch.weights * np.float32(np.nan)) if step == 3 else batch

    monkeypatch.setattr(Data, "batch", poisoned)
    for name, config in (("plain", changed()), ("averaged", with_average(changed(), TailAverage(0.4, STEPS)))):
        train(config, tmp_path / name, console=QUIET, programs=PROGRAMS)
    assert all(
        np.array_equal(a, b) for a, b in zip(params(tmp_path / "plain", 3), params(tmp_path / "plain", 4), strict=True)
    )
    assert_mean_of(tmp_path / "plain", tmp_path / "averaged", TailAverage(0.4, STEPS))


def test_a_run_begins_with_the_mean_of_another(averaged: Path, tmp_path: Path) -> None:
    """At a learning rate of 0 it ends with it too, and so does its own mean."""
    config = dataclasses.replace(with_average(changed(init_from=str(averaged)), Ema(0.5)), optimizer=Sgd(0.0))
    train(config, tmp_path / "next", console=QUIET, programs=PROGRAMS)
    for ours, theirs in zip(params(tmp_path / "next"), params(averaged), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
