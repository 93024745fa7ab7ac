"""Scores of heads while a run trains: what is recorded, of which tokens, and that the training does not notice."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from gpt_jax.analysis.heads import head_table
from gpt_jax.config import Attention, BlockConfig, Config, Delta, Diagnostics, Mlp, Rope
from gpt_jax.config.errors import UserError
from gpt_jax.data import open_data
from gpt_jax.runs.address import run_address
from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.diagnostics import repeated_tokens, summarize
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.load import load_run
from gpt_jax.runs.metrics import DIAGNOSTICS, read
from gpt_jax.runs.train import train
from tests.runs.test_metrics import events
from tests.tiny import PROGRAMS, tiny_config

BLOCKS = tuple(BlockConfig(mixer, Mlp(32)) for mixer in (Attention(2, position=Rope()), Delta(2)))
CONFIG = tiny_config(model={"blocks": BLOCKS}, diagnostics=Diagnostics(every=2, rows=3, tokens=8))


def trained(config: Config, folder: Path) -> Path:
    train(config, folder, console=Console(quiet=True), programs=PROGRAMS)
    return folder


def fingerprints(folder: Path) -> Any:
    with Checkpoints(RunFolder(folder), read_only=True) as checkpoints:
        return checkpoints.saved_fingerprints(max(checkpoints.steps()))


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(CONFIG, tmp_path_factory.mktemp("diagnosed") / "run")


def test_the_training_does_not_notice(diagnosed: Path, tmp_path: Path) -> None:
    """Parameters, moments and losses are those of a run without diagnostics, bit for bit; so is the address."""
    plain = dataclasses.replace(CONFIG, diagnostics=Diagnostics())
    without = trained(plain, tmp_path / "run")
    assert fingerprints(diagnosed) == fingerprints(without)
    of_both = [[record["loss"] for record in read(RunFolder(folder))] for folder in (diagnosed, without)]
    assert of_both[0] == of_both[1]
    assert read(RunFolder(without), DIAGNOSTICS) == []
    assert run_address(CONFIG, "data").hash == run_address(plain, "data").hash


def test_the_scores_are_those_of_the_models_heads(diagnosed: Path) -> None:
    """Of the first validation rows, and of repeated tokens where a score asks for repeats."""
    records = read(RunFolder(diagnosed), DIAGNOSTICS)
    assert [record["step"] for record in records] == [2, 4, 6]
    model, params, _ = load_run(str(diagnosed))
    data = open_data(CONFIG.data, CONFIG.model.context_length, CONFIG.data_seed, progress=False)
    of_text = head_table(model, params, jnp.asarray(next(data.validation(3)).tokens[:, :8]))
    of_repeats = head_table(model, params, jnp.asarray(repeated_tokens(3, 8, data.vocab_size).tokens))
    last = records[-1]
    for row in range(4):  # softmax attention and the delta rule, two heads each
        place = f"blocks/{of_text['layer'][row]}/attention"
        for score, table in (("entropy", of_text), ("effective_rank", of_text), ("induction", of_repeats)):
            assert last[f"{place}/{score}/{of_text['head'][row]}"] == pytest.approx(table[score][row], rel=1e-5)
    assert last["induction"] == pytest.approx(of_repeats["induction"].max(), rel=1e-5)
    assert last["entropy"] == pytest.approx(of_text["entropy"].mean(), rel=1e-5)
    assert last["largest_logit"] == pytest.approx(np.nanmax(of_text["largest_logit"]), rel=1e-5)
    assert "blocks/0/attention/largest_logit" in last and "blocks/1/attention/largest_logit" not in last  # no scores


def test_tensorboard_shows_them(diagnosed: Path) -> None:
    tags = {value.tag for event in events(diagnosed) for value in event.summary.value}
    assert {"diagnostics/entropy", "diagnostics/blocks/1/attention/induction/0"} <= tags


def test_a_run_that_goes_on_may_ask_for_them_and_records_each_once(diagnosed: Path, tmp_path: Path) -> None:
    short = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, steps=4), diagnostics=Diagnostics())
    folder = trained(short, tmp_path / "run")
    trained(CONFIG, folder)
    records = read(RunFolder(folder), DIAGNOSTICS)
    assert [record["step"] for record in records] == [4, 6]  # that of step 4 is made up for
    assert records == read(RunFolder(diagnosed), DIAGNOSTICS)[1:]


@pytest.mark.slow
def test_a_mesh_changes_them_by_rounding_alone(diagnosed: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, mesh="fsdp=2,tensor=2,data=-1")
    found, of_one = (read(RunFolder(f), DIAGNOSTICS)[0] for f in (trained(config, tmp_path / "run"), diagnosed))
    assert found.keys() == of_one.keys()
    assert list(found.values())[2:] == pytest.approx(list(of_one.values())[2:], rel=1e-3, abs=1e-4)


def test_repeats_need_room() -> None:
    batch = repeated_tokens(2, 9, 50)
    np.testing.assert_array_equal(batch.tokens[:, :4], batch.tokens[:, 4:])
    assert batch.tokens.shape == (2, 8)
    with pytest.raises(UserError, match="no room for two that repeat: leave diagnostics.every at None"):
        repeated_tokens(2, 3, 50)
    with pytest.raises(ValueError, match="whole rows on a device: leave diagnostics.every at None"):
        dataclasses.replace(CONFIG, mesh="data=2,sequence=2")
    with pytest.raises(ValueError, match="diagnostics.tokens must be at least 4"):
        Diagnostics(tokens=3)


def test_a_summary_leaves_out_what_is_not_defined() -> None:
    heads = {"layer": np.array([0, 0, 1]), "head": np.array([0, 1, 0])}
    found = summarize(heads | {"entropy": np.array([1.0, 3.0, 5.0]), "induction": np.array([0.5, np.nan, np.nan])})
    assert found["entropy"] == 3.0 and found["induction"] == 0.5
    assert found["blocks/0/attention/entropy"] == 2.0 and "blocks/1/attention/induction" not in found
    assert found["blocks/0/attention/entropy/1"] == 3.0 and "blocks/0/attention/induction/1" not in found
    assert summarize({}) == {}
