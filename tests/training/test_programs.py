"""Runs that share compiled programs: the numbers of runs by themselves, from one compilation."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpt_jax.config import Adamw, Config
from gpt_jax.runs import metrics
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.train import train
from gpt_jax.training import programs
from gpt_jax.training.programs import Programs
from tests.tiny import tiny_config


def dropping() -> Config:
    config = tiny_config()
    block = dataclasses.replace(config.model.blocks[0], dropout=0.1)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, blocks=(block,) * 2))


def measured(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in metrics.read(RunFolder(folder))]


def test_shared_programs_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds and learning rates reach dropout, initial values and updates as they do without sharing."""
    compiled = []
    compile_step = programs.compile_step
    monkeypatch.setattr(programs, "compile_step", lambda *a: (compiled.append(a), compile_step(*a))[1])
    config, shared, quiet = dropping(), Programs(), Console(quiet=True)
    arms = [config, dataclasses.replace(config, seed=1), dataclasses.replace(config, optimizer=Adamw(3e-2))]
    for number, arm in enumerate(arms):
        train(arm, tmp_path / f"shared-{number}", console=quiet, programs=shared)
    assert len(compiled) == 1
    for number, arm in enumerate(arms):
        train(arm, tmp_path / f"alone-{number}", console=quiet)
        assert measured(tmp_path / f"shared-{number}") == measured(tmp_path / f"alone-{number}")
    losses = {tuple(r["loss"] for r in measured(tmp_path / f"alone-{number}")) for number in range(3)}
    assert len(losses) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": Adamw(1e-2, beta2=0.9)},
        {"train": dataclasses.replace(tiny_config().train, clip_norm=0.1)},
        {"model": {"width": 8}},
    ],
)
def test_what_is_part_of_a_program_is_not_shared(changes: dict[str, Any], tmp_path: Path) -> None:
    shared, quiet = Programs(), Console(quiet=True)
    train(tiny_config(), tmp_path / "first", console=quiet, programs=shared)
    train(tiny_config(**changes), tmp_path / "shared", console=quiet, programs=shared)
    train(tiny_config(**changes), tmp_path / "alone", console=quiet)
    assert measured(tmp_path / "shared") == measured(tmp_path / "alone")
