"""A run that is interrupted and resumed equals the uninterrupted run, bit for bit.

A run is stopped three times, or killed by SIGKILL, and started again. Every recorded metric, the fingerprints of the
last checkpoint (parameters, moments, counters) and the loaded parameters must equal those of a run without a stop.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from gpt_jax.config import Checkpoint, Config, Ema, Evaluation, Muon, TailAverage, Text, WarmupCosine
from gpt_jax.config.conversion import to_dict
from gpt_jax.runs.goodput import GOODPUT
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.load import load_run
from gpt_jax.runs.train import train
from tests.tiny import tiny_config

pytestmark = pytest.mark.optimized

STEPS = 14
STOPS = (3, 6, 11)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """About 25 rows of text, so that an epoch ends after about 6 steps."""
    folder = tmp_path_factory.mktemp("text")
    generator = np.random.default_rng(0)
    for number in range(9):
        words = generator.choice(["alpha", "beta", "gamma", "delta\n"], 20)
        (folder / f"{number}.txt").write_text(" ".join(words))
    return Text(path=str(folder / "*.txt"), validation_fraction=0.2, validation_tokens=100)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_JAX_CACHE", str(tmp_path_factory.getbasetemp() / "resume-cache"))


def make_config(data: Text, changes: dict[str, Any]) -> Config:
    model = changes.pop("model") if "model" in changes else None
    how = changes.pop("train") if "train" in changes else {}
    config = tiny_config(
        steps=STEPS,
        data=data,
        schedule=WarmupCosine(warmup=4),
        evaluation=Evaluation(every=5, batch_size=8),
        checkpoint=Checkpoint(every=4),
        model=model,
        **changes,
    )
    # Dropout is on, so that the random numbers must go on too.
    block = dataclasses.replace(config.model.blocks[0], dropout=0.1)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, blocks=(block,) * 2),
        train=dataclasses.replace(config.train, **how),
    )


@pytest.fixture(scope="module")
def whole(text: Text, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run of the plain configuration."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT_JAX_CACHE", str(tmp_path_factory.getbasetemp() / "resume-cache"))
        train(make_config(text, {}), folder, console=Console(quiet=True))
    return folder


def measured(folder: Path) -> list[dict[str, Any]]:
    """The records without what holds times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["split"] != GOODPUT]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in kept]


def stored(folder: Path) -> dict[str, Any]:
    """Fingerprints of parameters, moments and counters in the last checkpoint."""
    return json.loads((folder / "checkpoints" / str(STEPS) / "record" / "metadata").read_text())["fingerprints"]


def assert_same_run(left: Path, right: Path) -> None:
    assert measured(left) == measured(right)
    assert stored(left) == stored(right)
    (_, ours, _), (_, theirs, _) = load_run(left), load_run(right)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="adamw"),
        pytest.param(
            {"optimizer": Muon(), "model": {"scan": True}, "train": {"average": TailAverage(0.3)}},
            id="muon-scanned-tail-average",
        ),
        pytest.param({"train": {"parallel": "pmap", "average": Ema(0.8)}}, id="pmap-ema"),
    ],
)
def test_a_run_stopped_three_times_equals_the_uninterrupted_run(
    tmp_path: Path, text: Text, whole: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = Console(quiet=True)
    config = make_config(text, dict(changes))
    if changes:
        whole = tmp_path / "whole"
        train(config, whole, console=quiet)
    assert measured(whole)[0]["tokens"] > 0
    with monkeypatch.context() as patch:
        for stop in STOPS:
            patch.setattr(Interrupts, "requested", lambda self, step, stop=stop: step == stop)
            outcome = train(config, tmp_path / "pieces", console=quiet)
            assert (outcome.status, outcome.step) == ("interrupted", stop)
    assert train(config, tmp_path / "pieces", console=quiet).status == "finished"
    assert_same_run(whole, tmp_path / "pieces")


def test_the_stops_lie_on_both_sides_of_the_end_of_an_epoch(text: Text) -> None:
    """A condition that the test above relies on."""
    from gpt_jax.data import open_data

    config = make_config(text, {})
    data = open_data(config.data, config.model.context_length, 0)
    assert data.train_rows is not None
    assert STOPS[0] * config.train.batch_size < data.train_rows < STOPS[-1] * config.train.batch_size


SCRIPT = """
import json, sys, time
from rich.console import Console
from gpt_jax.config import Config
from gpt_jax.config.conversion import from_dict
from gpt_jax import train
from gpt_jax.runs.interrupt import Interrupts
Interrupts.requested = lambda self, step: time.sleep(0.2)  # slow enough to be killed in the middle
train(from_dict(Config, json.load(open(sys.argv[1]))), sys.argv[2], console=Console(quiet=True))
"""


def test_a_killed_run_equals_the_uninterrupted_run(tmp_path: Path, text: Text, whole: Path) -> None:
    """Steps recorded after the newest checkpoint are computed again, with equal metrics, and recorded once."""
    config = make_config(text, {})
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "config.json"), str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], env=dict(os.environ))
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed" / "checkpoints").glob("[0-9]*")):
        assert process.poll() is None or process.returncode == 0, "the run failed before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert train(config, tmp_path / "killed", console=Console(quiet=True)).status == "finished"
    assert_same_run(whole, tmp_path / "killed")
