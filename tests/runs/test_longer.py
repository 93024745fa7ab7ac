"""A run that goes on for more steps than its schedule has."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from gpt_jax.config import (
    Checkpoint,
    Config,
    Constant,
    Evaluation,
    InverseSqrt,
    LinearDecay,
    ScheduleConfig,
    WarmupCosine,
    WarmupStableDecay,
)
from gpt_jax.config.errors import UserError
from gpt_jax.runs.longer import longer_command
from gpt_jax.runs.record import ConfigChanged
from gpt_jax.runs.session import Outcome
from gpt_jax.runs.train import train
from gpt_jax.training.schedule import make_schedule, shared_steps, stable_steps
from tests.tiny import PROGRAMS, tiny_config


def quietly(config: Config, folder: Path, **options: Any) -> Outcome:
    return train(config, folder, console=Console(quiet=True), programs=PROGRAMS, **options)


def scheduled(steps: int, schedule: ScheduleConfig) -> Config:
    return tiny_config(steps, schedule=schedule, evaluation=Evaluation(every=99), checkpoint=Checkpoint(every=2))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def trained(folder: Path) -> list[tuple[int, float, float]]:
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["loss"], r["learning_rate"]) for r in rows if r["split"] == "train"]


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def decayed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of a schedule that ends at 0."""
    folder = tmp_path_factory.mktemp("decayed") / "run"
    quietly(scheduled(4, LinearDecay()), folder)
    return folder


def test_no_step_is_added_at_a_rate_of_0(decayed: Path) -> None:
    before = everything(decayed)
    with pytest.raises(
        UserError, match="ends with step 4, so from there to step 6 the learning rate would be 0: .*init_from"
    ):
        quietly(scheduled(6, LinearDecay()), decayed)
    for other in (LinearDecay(steps=6), WarmupCosine(steps=6), Constant(), WarmupStableDecay(decay=2)):
        with pytest.raises(UserError, match="learning rate of step [12] would have been another one"):
            quietly(scheduled(6, other), decayed)
    with pytest.raises(ConfigChanged, match="schedule"):
        quietly(scheduled(4, LinearDecay(final=0.5)), decayed)
    assert everything(decayed).keys() == before.keys() and trained(decayed)[-1][0] == 4
    assert longer_command(decayed)[1] == {"--workdir": f"{decayed}-longer", "--config.init_from": str(decayed)}


def test_what_is_offered_for_a_schedule_that_ended_works(decayed: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(scheduled(2, LinearDecay()), init_from=str(decayed))
    quietly(config, tmp_path)
    assert [rate for _, _, rate in trained(tmp_path)] == pytest.approx([0.01, 0.005])


def test_a_cool_down_is_taken_back_and_the_run_goes_on_as_if_it_had_been_longer(tmp_path: Path) -> None:
    """Bit for bit, from the checkpoint before the decay, which stays; what is given up lies in `aside/`."""
    schedule = WarmupStableDecay(decay=3, warmup=1)
    run, whole = tmp_path / "run", tmp_path / "whole"
    quietly(scheduled(8, schedule), run)
    assert steps_of(run) == [6, 8], "before the decay, and the newest"
    title, flags = longer_command(run)
    assert "from step 6" in title and flags == {"--config.train.steps": "16", "--config.schedule.steps": "16"}
    with pytest.raises(UserError, match="would be 0: set schedule.steps to 10 as well"):
        quietly(scheduled(10, schedule), run)
    longer = dataclasses.replace(schedule, steps=10)
    with pytest.warns(UserWarning, match="goes back to step 6, where the new schedule parts"):
        assert quietly(scheduled(10, longer), run).status == "finished"
    quietly(scheduled(10, longer), whole)
    assert trained(run) == trained(whole)
    (aside,) = (run / "aside").iterdir()
    assert steps_of(aside) == [8] and trained(aside)[-1][0] == 8
    assert quietly(scheduled(10, longer), run).status == "already finished"


def test_a_constant_rate_takes_a_cool_down(tmp_path: Path) -> None:
    quietly(scheduled(2, Constant(warmup=1)), tmp_path)
    assert longer_command(tmp_path)[1] == {"--config.train.steps": "4"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        quietly(scheduled(4, WarmupStableDecay(decay=2, warmup=1)), tmp_path)
    assert [rate for _, _, rate in trained(tmp_path)] == pytest.approx([0.0, 0.01, 0.01, 0.005])


SCHEDULES: list[tuple[ScheduleConfig, ScheduleConfig]] = [
    (LinearDecay(steps=40), LinearDecay(steps=60)),
    (LinearDecay(warmup=9, steps=40), WarmupCosine(warmup=9, steps=40)),
    (WarmupStableDecay(10, 3, steps=40), WarmupStableDecay(10, 3, steps=60)),
    (WarmupStableDecay(10, 3, steps=40), WarmupStableDecay(5, 3, 0.5, steps=60)),
    (Constant(3), WarmupStableDecay(10, 3, steps=60)),
    (Constant(3), Constant(4)),
    (InverseSqrt(9), Constant(9)),
    (Constant(), Constant()),
]


@pytest.mark.parametrize(("old", "new"), SCHEDULES, ids=str)
def test_the_steps_that_two_schedules_share(old: ScheduleConfig, new: ScheduleConfig) -> None:
    count = shared_steps(old, new, 50)
    one, other = make_schedule(old), make_schedule(new)
    assert all(one(step) == other(step) for step in range(count))
    assert count == 50 or one(count) != other(count)
    if isinstance(old, WarmupStableDecay):
        assert count == stable_steps(old) and np.float32(one(count)) < 1
    else:
        assert stable_steps(old) is None
