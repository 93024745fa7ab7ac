"""The shipped studies, at their own sizes or smaller, reproduce known effects of attention: a study that missed an
effect that exists would prove nothing by finding none.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from rich.console import Console

from configs.ablations import induction, kv_heads, positions, recall
from gpt_jax.ablation.findings import ArmResults
from gpt_jax.ablation.plan import make_plan
from gpt_jax.ablation.results import write_results
from gpt_jax.ablation.runner import Runner, write_plan
from gpt_jax.ablation.schema import Grouping
from gpt_jax.ablation.study import Study, change
from gpt_jax.analysis.heads import head_table
from gpt_jax.analysis.interventions import at, zero
from gpt_jax.config import Config
from gpt_jax.config.conversion import from_config_dict
from gpt_jax.data import Batch, open_data
from gpt_jax.model.gpt import GPT
from gpt_jax.runs.load import load_run
from gpt_jax.training.loss import cross_entropy

pytestmark = pytest.mark.slow


def arms_of(study: Study, folder: Path, names: tuple[str, ...]) -> dict[str, ArmResults]:
    """Results of some arms, the baseline among them, of a study without its noise and copy."""
    kept = tuple(arm for arm in study.arms if arm.name in names)
    plan = make_plan(dataclasses.replace(study, arms=kept, fresh_seeds=0, aa=False))
    write_plan(plan, folder, "test", Grouping(1, "as asked", ""), forced=False)
    assert Runner(plan, folder, Console(quiet=True)).run() == "finished"
    return {arm.name: arm for arm in write_results(folder).arms}


def base_of(module: Any) -> Config:
    return from_config_dict(Config, module.get_config())


def test_two_attention_layers_solve_induction_and_one_does_not(tmp_path: Path) -> None:
    """Olsson et al. 2022, arXiv:2209.11895: V = 32, C = 64, T = 48, B = 32, 300 steps."""
    base = base_of(induction)
    assert (base.data.symbols, base.model.width, base.train.steps, base.train.batch_size) == (32, 64, 300, 32)
    arms = arms_of(induction.get_study(base), tmp_path, ("two layers", "one layer"))
    assert max(arms["two layers"].losses.values()) <= 0.1
    assert min(arms["one layer"].losses.values()) > 1.0
    assert arms["one layer"].versus_baseline.verdict == "worse"
    runs = {name: load_run(str(tmp_path / str(arm.runs[0].folder))) for name, arm in arms.items()}
    model, params, _ = runs["two layers"]
    batch = next(open_data(base.data, base.model.context_length, 0, progress=False).validation(64))
    table = head_table(model, params, jnp.asarray(batch.tokens))
    found = table["induction"] > 0.5
    assert set(table["layer"][found]) == {1}, "the score finds heads of the second layer alone"
    assert (table["previous_token"][table["layer"] == 0] > 0.3).any(), "and in the first one, what feeds them"
    edit = {"blocks/1/attention/heads": at(zero, heads=table["head"][found].tolist(), heads_first=True)}
    assert loss_of(model, params, batch) < 0.1
    # Not the same loss: what is left of two layers has not learned to do without the others, which one layer has.
    assert loss_of(model, params, batch, edit) >= loss_of(*runs["one layer"][:2], batch) > 1.0


def loss_of(model: GPT, params: Any, batch: Batch, edit: Any = None) -> float:
    nll, _, _ = cross_entropy(model.apply(params, jnp.asarray(batch.tokens), edit=edit), jnp.asarray(batch.targets))
    return float((nll * batch.weights).sum() / batch.weights.sum())


def test_a_short_window_can_not_recall(tmp_path: Path) -> None:
    study = dataclasses.replace(recall.get_study(base_of(recall)), seeds=(0, 1))
    arms = arms_of(study, tmp_path, ("full", "window"))
    accuracy = {name: dict(map(tuple, arm.accuracy_by.points)) for name, arm in arms.items()}
    assert accuracy["full"][4] > 0.9
    assert accuracy["window"][4] < 0.2


def test_alibi_outlives_its_training_length_and_codes_do_not(tmp_path: Path) -> None:
    """Press et al. 2021, arXiv:2108.12409."""
    base = change(base_of(positions), {"train.steps": 400, "data.validation_tokens": 16_384})
    study = dataclasses.replace(positions.get_study(base), seeds=(0,), baseline="alibi")
    arms = arms_of(study, tmp_path, ("alibi", "learned", "sinusoidal"))
    ratio = {}
    for name, arm in arms.items():
        loss = {factor: mean for factor, mean, _, _ in arm.extrapolation}
        assert loss[4] == pytest.approx(arm.mean, rel=1e-4)  # the endpoint
        assert loss[1] == pytest.approx(arm.losses["0"], rel=0.02)  # the same text in other rows
        ratio[name] = loss[4] / loss[1]
    assert ratio["alibi"] < 1.1
    assert max(ratio["learned"], ratio["sinusoidal"]) > 1.2


def test_mqa_keeps_one_head_of_bytes() -> None:
    plan = make_plan(kv_heads.get_study(base_of(kv_heads)))
    heads = plan.arms["mha"].config.model.blocks[0].attention.heads
    bytes_of = {name: arm.costs.kv_bytes_per_token for name, arm in plan.arms.items()}
    assert bytes_of["mqa"] == bytes_of["mha"] / heads and bytes_of["gqa"] == bytes_of["mha"] / 2
    assert all(abs(arm.costs.parameters / plan.arms["mha"].costs.parameters - 1) < 0.01 for arm in plan.arms.values())
