"""A run's checkpoint resumes on any mesh: the same content, and the losses of a run that never moved."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from gpt_jax.config import Adamw, Attention, Checkpoint, Config, Constant, Muon
from gpt_jax.runs.evaluate import evaluate_run
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.load import load_run
from gpt_jax.runs.metrics import read
from gpt_jax.runs.together import train_together
from gpt_jax.runs.train import train
from tests.tiny import PROGRAMS, tiny, tiny_config

ALONE, DIVIDED = "data=-1", "fsdp=2,tensor=2"


def config_of(mesh: str, steps: int, optimizer: Any = None) -> Config:
    model = {"width": 16, "blocks": tiny(Attention(heads=4, kv_heads=2)).blocks}
    config = tiny_config(steps=steps, model=model, schedule=Constant(), checkpoint=Checkpoint(every=4, keep=4))
    return dataclasses.replace(config, mesh=mesh, optimizer=optimizer or Adamw(1e-2))


def run(config: Config, folder: Path) -> list[float]:
    train(config, folder, console=Console(quiet=True), programs=PROGRAMS)
    return [r["loss"] for r in read(RunFolder(folder)) if r["split"] == "train"]


@pytest.mark.parametrize(("first", "second"), [(ALONE, DIVIDED), (DIVIDED, ALONE), (DIVIDED, "data=2,sequence=2")])
def test_a_checkpoint_resumes_on_another_mesh(first: str, second: str, tmp_path: Path) -> None:
    whole = run(config_of(ALONE, 8), tmp_path / "whole")
    run(config_of(first, 4), tmp_path / "moved")
    before = jax.device_get(load_run(tmp_path / "moved")[1])
    moved = run(config_of(second, 8), tmp_path / "moved")
    np.testing.assert_allclose(moved, whole, rtol=1e-5)
    early = jax.device_get(load_run(tmp_path / "moved", step=4)[1])
    jax.tree.map(np.testing.assert_array_equal, early, before)


def test_the_same_mesh_repeats_bit_for_bit(tmp_path: Path) -> None:
    once = run(config_of(DIVIDED, 6, Muon(1e-2)), tmp_path / "once")
    run(config_of(DIVIDED, 3, Muon(1e-2)), tmp_path / "twice")
    assert run(config_of(DIVIDED, 6, Muon(1e-2)), tmp_path / "twice") == once


def test_a_divided_run_evaluates(tmp_path: Path) -> None:
    run(config_of(DIVIDED, 3), tmp_path)
    recorded = [r for r in read(RunFolder(tmp_path)) if r["split"] == "validation"][-1]["loss"]
    assert evaluate_run(tmp_path)[1]["loss"] == pytest.approx(recorded, rel=1e-6)


def test_divided_runs_do_not_train_together(tmp_path: Path) -> None:
    configs = [dataclasses.replace(config_of(DIVIDED, 3), seed=seed) for seed in (0, 1)]
    with pytest.raises(ValueError, match="mesh that divides parameters"):
        train_together(configs, [tmp_path / "a", tmp_path / "b"])
