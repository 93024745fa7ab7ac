"""Spikes of the loss: told with the documents of their batch, and skipped by choice, also across an interrupt."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from gpt_jax.config import Checkpoint, Config, Evaluation, LogSpikes, RewindSpikes, SkipSpikes, SpikesConfig
from gpt_jax.config.errors import UserError
from gpt_jax.data import open_data
from gpt_jax.data.sources import sources
from gpt_jax.model.gpt import GPT
from gpt_jax.runs import metrics
from gpt_jax.runs.folder import METRICS, RunFolder
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.rewind import LeftOut, TooManySpikes, read_left_out
from gpt_jax.runs.spikes import SPIKE, SpikeWatch, sentence
from gpt_jax.runs.train import train
from gpt_jax.training.resolve import resolve
from gpt_jax.training.state import init_state
from gpt_jax.training.step import make_train_step
from tests.tiny import PROGRAMS, tiny_config

NEVER = {"evaluation": Evaluation(every=100, batch_size=8), "checkpoint": Checkpoint(every=3)}


def config(spikes: SpikesConfig | None) -> Config:
    base = tiny_config(steps=12, **NEVER)
    return dataclasses.replace(base, train=dataclasses.replace(base.train, spikes=spikes))


def trained(folder: Path, spikes: SpikesConfig | None, console: Console | None = None) -> list[dict[str, Any]]:
    train(config(spikes), folder, console=Console(quiet=True) if console is None else console, programs=PROGRAMS)
    return metrics.read(RunFolder(folder), "train")


def losses(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records]


def test_a_step_skips_the_update_of_a_spike_and_of_nothing_else() -> None:
    """Decided in the step from the losses that the state carries; and without the choice the program is the same."""
    data = open_data(config(None).data, 16, 0)
    skip = resolve(config(SkipSpikes(window=4, sigmas=3.0)), data)
    model, batch = GPT(skip.model), data.batch(0, 8)
    state, step = init_state(model, skip), jax.jit(make_train_step(model, skip))
    assert np.isnan(state.recent).all()
    after, values = step(state, batch)
    assert int(values["skipped"]) == 0 and float(after.recent[-1]) == float(values["loss"])  # the first loss is none
    loss = float(values["loss"])
    for recent, is_spike in (
        ([loss - 1.0, loss - 1.1, loss - 0.9, loss - 1.0], True),
        ([loss - 1.0, loss - 3.1, loss + 0.9, loss - 1.0], False),
        ([loss + 1.0, loss + 1.1, loss + 0.9, loss + 1.0], False),
        ([float("nan"), loss - 1.1, loss - 0.9, loss - 1.0], False),
    ):
        given = dataclasses.replace(state, recent=jnp.array(recent, jnp.float32))
        after, values = step(given, batch)
        assert (int(values["skipped"]), int(after.skipped_in_row)) == (is_spike, is_spike)
        same = jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), after.params, state.params))
        assert all(same) == is_spike and int(after.step) == 1
        np.testing.assert_array_equal(after.recent, np.float32(recent if is_spike else [*recent[1:], loss]))

    def program(spikes: SpikesConfig | None) -> str:
        c = resolve(config(spikes), data)
        return str(jax.make_jaxpr(make_train_step(model, c))(jax.eval_shape(lambda: init_state(model, c)), batch))

    assert program(None) == program(LogSpikes()) != program(SkipSpikes())


def test_the_record_of_a_spike_names_its_documents_and_changes_no_number(tmp_path: Path) -> None:
    """Half a standard deviation above the last three losses is something that noise reaches in some of the steps."""
    output = io.StringIO()
    plain = trained(tmp_path / "plain", None)
    told = trained(tmp_path / "told", LogSpikes(window=3, sigmas=0.5), Console(file=output, width=200))
    assert losses(plain) == losses(told)
    found = metrics.read(RunFolder(tmp_path / "told"), SPIKE)
    expected = [
        i + 1
        for i in range(3, 12)
        if losses(plain)[i] - np.mean(losses(plain)[i - 3 : i]) > 0.5 * np.std(losses(plain)[i - 3 : i])
    ]
    assert 0 < len(expected) < 9 and [record["step"] for record in found] == expected
    data = open_data(config(None).data, 16, 0)
    for record in found:
        assert record["documents"] == [list(span) for span in sources(data, record["step"] - 1, 8)]
        assert f"{sentence(record)}\n" in output.getvalue()
        assert f"document {8 * (record['step'] - 1)} (tokens 0–8)" in sentence(record) and "4 more" in sentence(record)
    assert not metrics.read(RunFolder(tmp_path / "plain"), SPIKE)


def test_a_run_goes_back_after_a_spike_and_leaves_out_what_led_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses are those of a run that never saw the batches, bit for bit, also across interrupts."""
    choice = RewindSpikes(window=4, sigmas=3.0)
    output = io.StringIO()
    found = trained(tmp_path / "whole", choice, Console(file=output, width=200))
    left_out = read_left_out(RunFolder(tmp_path / "whole"))
    assert 0 < len(left_out.records) <= 10 and [record["step"] for record in found] == list(range(1, 13))
    data = open_data(config(None).data, 16, 0)
    for i, record in enumerate(left_out.records):
        assert record["after"] % 3 == 0 and 0 < record["batches"] <= 4
        seen = LeftOut(left_out.records[:i]).batch(record["step"] - 1)
        assert record["documents"] == [list(span) for span in sources(data, seen, 8)]
        assert f"step {record['step']}: {record['reason']}" in output.getvalue()

    monkeypatch.setattr("gpt_jax.runs.session.read_left_out", lambda folder: left_out)
    assert losses(trained(tmp_path / "without", None)) == losses(found)
    monkeypatch.undo()
    for stop in (4, 8):
        monkeypatch.setattr(Interrupts, "requested", lambda self, step, stop=stop: step == stop)
        trained(tmp_path / "parts", choice)
    monkeypatch.undo()
    trained(tmp_path / "parts", choice)
    again = read_left_out(RunFolder(tmp_path / "parts"))
    assert len(again.records) > 0  # an interrupt saves, and a checkpoint more is another place to go back to

    often = dataclasses.replace(choice, most=1, sigmas=0.3)
    with pytest.raises(TooManySpikes, match="after the run has gone back 1 times"):
        trained(tmp_path / "often", often)
    assert len(read_left_out(RunFolder(tmp_path / "often")).records) == 1
    (tmp_path / "often" / "left_out.json").write_text('[{"after": 3}]')
    with pytest.raises(UserError, match=r"left_out.json is damaged"):
        trained(tmp_path / "often", often)


def test_a_run_that_skips_spikes_goes_on_as_if_never_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = SkipSpikes(window=3, sigmas=0.5)
    whole = trained(tmp_path / "whole", choice)
    assert 0 < whole[-1]["skipped"] < 9
    for stop in (5, 9):
        monkeypatch.setattr(Interrupts, "requested", lambda self, step, stop=stop: step == stop)
        trained(tmp_path / "parts", choice)
    monkeypatch.undo()
    parts = trained(tmp_path / "parts", choice)
    assert losses(parts) == losses(whole)

    def stored(folder: Path) -> Any:
        record = json.loads((folder / "checkpoints" / "12" / "record" / "metadata").read_text())
        return record["fingerprints"]

    assert stored(tmp_path / "parts") == stored(tmp_path / "whole")
    assert "recent" in stored(tmp_path / "whole")["rest"]
    found = [metrics.read(RunFolder(tmp_path / name), SPIKE) for name in ("whole", "parts")]
    assert found[0] == found[1] and len(found[0]) == whole[-1]["skipped"]
    assert all("the update is skipped" in record["reason"] for record in found[0])


def test_a_step_that_is_not_finite_is_told_too(tmp_path: Path) -> None:
    data = open_data(config(None).data, 16, 0)
    watch = SpikeWatch(config(None).train, data, [], LeftOut().batch)
    good = {"loss": 2.0, "grad_norm": 1.0, "skipped": 0}
    assert watch.look(1, good) is None
    record = watch.look(2, {"loss": float("nan"), "grad_norm": 1.0, "skipped": 1})
    assert record is not None and "not finite" in sentence(record) and "document 8 " in sentence(record)
    assert watch.look(3, {"loss": 2.0, "grad_norm": float("inf"), "skipped": 2}) is not None
    assert watch.look(4, {**good, "loss": 90.0, "skipped": 2}) is None  # nobody asked for spikes
    later = SpikeWatch(config(SkipSpikes()).train, data, [], LeftOut().batch)  # earlier starts recorded no step
    later.begin(7)
    assert later.look(5, {**good, "skipped": 7}) is None
    later = SpikeWatch(config(SkipSpikes()).train, data, [], LeftOut().batch)
    later.begin(7)
    skipped = later.look(5, {**good, "skipped": 8})
    assert skipped is not None and "is a spike" in sentence(skipped)
    (tmp_path / "run").mkdir()
    records = metrics.Metrics(RunFolder(tmp_path / "run"), 0, [metrics.TensorBoard(RunFolder(tmp_path / "run"), 0)])
    records.write(record)  # TensorBoard has no curve of sentences
    records.close()
    line = json.loads((tmp_path / "run" / METRICS).read_text())
    assert line["loss"] is None and line["documents"] == record["documents"]
