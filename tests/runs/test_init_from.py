"""A run that begins with another's parameters: what it takes over, what it refuses, and that it stays with them."""

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from gpt_jax import load_run
from gpt_jax.config import (
    Attention,
    Checkpoint,
    Config,
    Copy,
    Embedding,
    Evaluation,
    Learned,
    Lora,
    Rope,
    Sgd,
    Sort,
    TokenizerFile,
    Window,
)
from gpt_jax.config.conversion import from_config_dict, from_dict, to_dict
from gpt_jax.config.errors import ConfigError, UserError
from gpt_jax.model.merge import merge_adapter
from gpt_jax.runs.evaluate import evaluate_run
from gpt_jax.runs.init_from import completed, to_partial_dict
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.session import Outcome
from gpt_jax.runs.train import train
from tests.tiny import PROGRAMS, tiny_config

LORA = Lora(rank=2, dropout=0.1, targets=("**",))


def quietly(config: Config, folder: Path) -> Outcome:
    return train(config, folder, console=Console(quiet=True), programs=PROGRAMS)


def begun_from(base: Path | str, adapter: Any = None, **changes: Any) -> Config:
    """The tiny run from another one's parameters; `changes` as for `tiny_config`."""
    config = tiny_config(**{"init_from": str(base), "evaluation": Evaluation(every=3, batch_size=8)} | changes)
    blocks = tuple(dataclasses.replace(block, adapter=adapter) for block in config.model.blocks)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, blocks=blocks))


def parameters(folder: Path) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree.leaves_with_path(load_run(folder)[1])}


def losses(folder: Path, split: str = "train") -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["split"] == split}


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(value, theirs[path], err_msg=path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "run"
    quietly(tiny_config(), folder)
    return folder


@pytest.fixture(scope="module")
def adapted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps that adapts `base`, from a stack that is scanned."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    quietly(begun_from(base, LORA, model={"scan": True}), folder)
    return folder


# ── what it begins with ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scan", [False, True])
def test_it_begins_with_the_parameters_of_the_newest_checkpoint(base: Path, tmp_path: Path, scan: bool) -> None:
    still = begun_from(base, optimizer=Sgd(learning_rate=1e-30), steps=1, model={"scan": scan})
    outcome = quietly(still, tmp_path / "a")
    assert_same(parameters(tmp_path / "a"), parameters(base))
    # And so with its loss; the optimizer, the data and the count of steps begin anew.
    _, validation = evaluate_run(base)
    assert outcome.step == 1 and outcome.validation is not None
    assert outcome.validation["loss"] == pytest.approx(validation["loss"], rel=1e-6)


def test_only_the_adapter_is_saved_and_load_run_opens_it(base: Path, adapted: Path) -> None:
    model, params, tokenizer = load_run(adapted)
    ours, theirs = parameters(adapted), parameters(base)
    own = {path: value for path, value in ours.items() if "adapter" in path}
    assert_same({path: value for path, value in ours.items() if path not in own}, theirs)
    assert len(own) == 24 and any(np.abs(value).max() > 0 for path, value in own.items() if "['b']" in path)
    saved = (adapted / "checkpoints" / "6" / "params" / "_METADATA").read_text()
    assert "adapter" in saved and "embedding" not in saved
    assert tokenizer.content_hash() == load_run(base)[2].content_hash()
    tokens = jnp.arange(8)[None]
    merged, one = merge_adapter(model, params)
    assert np.abs(model.apply(params, tokens) - merged.apply(one, tokens)).max() < 1e-5
    assert np.abs(model.apply(params, tokens) - merged.apply(load_run(base)[1], tokens)).max() > 1e-4
    step, found = evaluate_run(adapted)
    assert step == 6 and found["loss"] == pytest.approx(losses(adapted, "validation")[6], rel=1e-5)


def test_an_adapter_can_be_what_another_run_begins_with(adapted: Path, tmp_path: Path) -> None:
    """Merged, then: the new run's adapter is its own."""
    still = begun_from(adapted, LORA, optimizer=Sgd(learning_rate=1e-30), steps=1)
    quietly(still, tmp_path / "a")
    _, merged = merge_adapter(*load_run(adapted)[:2])
    _, again = merge_adapter(*load_run(tmp_path / "a")[:2])
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(merged), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)


def test_parameters_may_be_kept_in_another_type(base: Path, tmp_path: Path) -> None:
    quietly(begun_from(base, LORA, steps=2, model={"param_dtype": "bfloat16", "dtype": "bfloat16"}), tmp_path / "a")
    for path, value in parameters(tmp_path / "a").items():
        assert value.dtype == jnp.bfloat16, path


def test_what_changes_no_parameter_is_free_and_is_said(base: Path, tmp_path: Path) -> None:
    config = begun_from(base, steps=1)
    block = dataclasses.replace(config.model.blocks[0], attention=Attention(2, position=Rope(), mask=Window(3)))
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, blocks=(block,) * 2, context_length=32, remat="full")
    )
    output = io.StringIO()
    train(config, tmp_path / "a", console=Console(file=output, width=300))
    assert f"{base}, step 6" in output.getvalue()
    for said in ("model.context_length: 16 → 32", "model.attention.mask.size: None → 3"):
        assert said in output.getvalue()
    assert "model.remat" not in output.getvalue()


# ── what it refuses ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_another_model_is_refused_by_the_names_of_its_settings(base: Path, tmp_path: Path) -> None:
    for config, said in {
        begun_from(base, model={"width": 32}): r"model\.width: 16 → 32: .*key/kernel is 16 × 16 there and 32 × 32",
        begun_from(base, model={"vocab_size": 20}): r"model\.vocab_size: 9 → 20: embedding/table is 9 × 16 there",
        begun_from(base, model={"embedding": Embedding(Learned())}): r"model\.embedding\.position.*is absent there",
    }.items():
        with pytest.raises(ConfigError, match=said):
            quietly(config, tmp_path / "a")
    assert not (tmp_path / "a" / "config.json").exists()


def test_another_tokenizer_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has another tokenizer than this data: set data.tokenizer.type to Tokenizer"):
        quietly(begun_from(base, data=Sort(symbols=8, validation_rows=10)), tmp_path / "a")
    fewer = begun_from(base, data=Copy(symbols=4, length=4, validation_rows=10))  # its ids would fit
    with pytest.raises(ValueError, match="has another tokenizer"):
        quietly(fewer, tmp_path / "b")


def test_no_run_to_begin_with_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        quietly(begun_from(tmp_path / "nowhere"), tmp_path / "a")
    with pytest.raises(ConfigError, match="model.adapter adapts a trained model: set init_from"):
        dataclasses.replace(begun_from("a run", LORA), init_from=None)


# ── going on ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("adapter", [None, LORA], ids=["whole", "adapter"])
def test_an_interrupted_run_goes_on_bit_for_bit(
    base: Path, tmp_path: Path, adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = begun_from(base, adapter, checkpoint=Checkpoint(every=4))
    quietly(config, tmp_path / "whole")
    for stop in (1, 5):
        with monkeypatch.context() as patch:
            patch.setattr(Interrupts, "requested", lambda self, step, stop=stop: step == stop)
            assert quietly(config, tmp_path / "cut").step == stop
    assert quietly(config, tmp_path / "cut").status == "finished"
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert_same(parameters(tmp_path / "cut"), parameters(tmp_path / "whole"))


@pytest.fixture
def own_base(base: Path, tmp_path: Path) -> Path:
    """A copy of the base that a test may do anything to."""
    return Path(shutil.copytree(base, tmp_path / "there" / "base"))


def test_a_run_stays_with_the_step_that_it_began_with(own_base: Path, tmp_path: Path) -> None:
    """Also when the other run has gone on since, as far as that step is kept."""
    config = begun_from(own_base, LORA, steps=2)
    quietly(config, tmp_path / "a")
    before = parameters(tmp_path / "a")
    longer = dataclasses.replace(tiny_config(), train=dataclasses.replace(tiny_config().train, steps=7))
    quietly(longer, own_base)
    if (own_base / "checkpoints" / "6").exists():
        assert_same(parameters(tmp_path / "a"), before)
        shutil.rmtree(own_base / "checkpoints" / "6")
    with pytest.raises(ValueError, match="has no checkpoint of step 6"):
        load_run(tmp_path / "a")


def test_a_base_with_other_parameters_is_refused(own_base: Path, tmp_path: Path) -> None:
    config = begun_from(own_base, LORA, steps=2)
    quietly(config, tmp_path / "a")
    shutil.rmtree(own_base)
    quietly(tiny_config(seed=1), own_base)
    for again in (lambda: load_run(tmp_path / "a"), lambda: quietly(lengthened(config), tmp_path / "a")):
        with pytest.raises(ValueError, match="are not those that the run in .* began with"):
            again()


def lengthened(config: Config) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=config.train.steps + 1))


def test_moved_together_they_find_each_other(own_base: Path, tmp_path: Path) -> None:
    quietly(begun_from(own_base, LORA, steps=2), own_base.parent / "adapted")
    before = parameters(own_base.parent / "adapted")
    shutil.move(own_base.parent, tmp_path / "here")
    assert_same(parameters(tmp_path / "here" / "adapted"), before)
    shutil.rmtree(tmp_path / "here" / "base")
    with pytest.raises(FileNotFoundError, match="began with the run in .*base, which is gone: put it back there"):
        load_run(tmp_path / "here" / "adapted")


def test_a_run_that_began_with_itself_is_refused(adapted: Path, tmp_path: Path) -> None:
    """By its own record, or by that of its base."""

    def write(name: str, base: Any) -> Path:
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(adapted, folder)
        kept = json.loads((folder / "environment.json").read_text())
        (folder / "environment.json").write_text(json.dumps(kept | {"base": base}))
        return folder

    began = json.loads((adapted / "environment.json").read_text())["base"] | {"relative": None, "step": 6}
    alone = write("alone", began | {"folder": str(tmp_path / "alone")})
    write("b", began | {"folder": str(tmp_path / "a")})
    pair = write("a", began | {"folder": str(tmp_path / "b")})
    for folder in (alone, pair):
        with pytest.raises(UserError, match="began with itself"):
            load_run(folder)
    for wrong in (None, [], "x", {}, began | {"folder": 3}, began | {"step": "6"}):
        with pytest.raises(UserError, match="does not say|damaged|must"):
            load_run(write("a", wrong))


def test_a_whole_run_needs_its_base_no_more(own_base: Path, tmp_path: Path) -> None:
    config = begun_from(own_base, steps=2)
    quietly(config, tmp_path / "a")
    shutil.rmtree(own_base)
    assert quietly(lengthened(config), tmp_path / "a").step == 3


# ── configurations that leave the model to the base ──────────────────────────────────────────────────────────────────


def partial(**changes: Any) -> Any:
    run = {"data": Copy(symbols=8, length=4, validation_rows=10), "optimizer": Sgd(), "train": tiny_config().train}
    return to_partial_dict(changes, **run)


def test_what_a_configuration_leaves_out_is_the_bases(base: Path) -> None:
    values = partial(adapter=LORA, remat="full")
    values.init_from = str(base)
    config = from_dict(Config, completed(values.to_dict()))
    expected = tiny_config(model={"vocab_size": 9, "remat": "full"}).model
    blocks = tuple(dataclasses.replace(block, adapter=LORA) for block in expected.blocks)
    assert config.model == dataclasses.replace(expected, blocks=blocks)
    assert from_config_dict(Config, type(values)(completed(values.to_dict()))) == config


def test_text_takes_the_tokenizer_of_the_base(base: Path) -> None:
    whole = to_dict(tiny_config(init_from=str(base)))
    values = {**whole, "data": {"type": "Text", "path": "a.txt"}}
    assert from_dict(Config, completed(values)).data.tokenizer == TokenizerFile(str(base / "tokenizer"))
    values["data"]["tokenizer"] = {"type": "Bytes"}
    assert completed(values) == values
    assert completed({**values, "init_from": None}) == {**values, "init_from": None}


def test_a_model_left_open_needs_a_base() -> None:
    with pytest.raises(ConfigError, match="init_from is not set, and .* takes its model from the run there"):
        completed(partial().to_dict())


def test_a_learned_table_keeps_its_length(tmp_path: Path) -> None:
    """A shorter context is another number of positions only where the table's length derives from it."""
    quietly(tiny_config(model={"embedding": Embedding(Learned())}), tmp_path / "base")
    values = partial(context_length=8)
    values.init_from = str(tmp_path / "base")
    config = from_dict(Config, completed(values.to_dict()))
    assert config.model.embedding.position == Learned(length=16) and config.model.context_length == 8
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=1))
    assert quietly(config, tmp_path / "a").status == "finished"
