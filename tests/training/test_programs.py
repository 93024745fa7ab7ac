"""Runs that share compiled programs give the numbers that they give alone, from one compilation."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from gpt_jax.config import Adamw, Config, Lora
from gpt_jax.model.adapter import is_adapter
from gpt_jax.model.gpt import GPT
from gpt_jax.model.paths import path_of
from gpt_jax.model.shapes import canonical_shapes
from gpt_jax.runs import metrics
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.train import train
from gpt_jax.training import programs
from gpt_jax.training.programs import Programs
from gpt_jax.training.sharding import make_mesh, replicated
from gpt_jax.training.state import first_state, init_params
from tests.tiny import tiny_config

pytestmark = pytest.mark.optimized


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


def test_initial_states_are_made_on_the_mesh_with_the_bits_of_one_device() -> None:
    """Every array comes in the sharding that the step takes; beside a base, adapters alone are drawn."""
    config = dropping()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=9))
    mesh, model = make_mesh(), GPT(config.model)
    alone = jax.jit(lambda key: first_state(config, init_params(model, config, key)))(jax.random.key(config.seed))
    made = Programs().init(config, mesh)
    for path, array in jax.tree.leaves_with_path(made):
        assert array.sharding == replicated(mesh), path
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(made), jax.device_get(alone))

    block = dataclasses.replace(config.model.blocks[0], adapter=Lora(rank=2))
    adapted = dataclasses.replace(config, model=dataclasses.replace(config.model, blocks=(block,) * 2), init_from="it")
    base = jax.tree.map(lambda x: x + 1, alone.params)
    state = Programs().init(adapted, mesh, base)
    for path, array in jax.tree.leaves_with_path(state):
        assert array.sharding == replicated(mesh), path
    given = {path_of(keys): leaf for keys, leaf in jax.tree.leaves_with_path(base)}
    found = {path_of(keys): leaf for keys, leaf in jax.tree.leaves_with_path(state.params)}
    assert {path for path in found if path not in given} == set(filter(is_adapter, canonical_shapes(adapted.model)))
    for path, leaf in given.items():
        np.testing.assert_array_equal(found[path], leaf)


def test_each_mesh_has_programs_of_its_own() -> None:
    """Sums compiled for one device and for all differ, and each mesh gets its own back."""
    config, shared = tiny_config(), Programs()
    meshes = [make_mesh(jax.devices()[:count]) for count in (1, 4)]
    one, four = (shared.sums_by_row(config, mesh) for mesh in meshes)
    assert one is not four
    assert [shared.sums_by_row(config, mesh) for mesh in meshes] == [one, four]
    assert shared.step_together(config, meshes[0]) is not shared.step_together(config, meshes[1])


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
