"""The loop and its observer: what a run leaves behind, and how it ends (finished, interrupted, diverged, refused)."""

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

from gpt_jax.config import Checkpoint, Config, Evaluation, LinearDecay, Sgd
from gpt_jax.config.conversion import from_dict
from gpt_jax.data import Batch
from gpt_jax.runs import metrics, session
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.goodput import GOODPUT
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.lease import RunLocked
from gpt_jax.runs.load import load_run
from gpt_jax.runs.loop import RunObserver, TrainingDiverged, run_steps
from gpt_jax.runs.record import ConfigChanged
from gpt_jax.runs.session import Outcome
from gpt_jax.runs.train import train
from gpt_jax.training.programs import Programs
from gpt_jax.training.state import TrainState
from tests.tiny import PROGRAMS, tiny_config


def quietly(config: Config, folder: Path, **options: Any) -> Outcome:
    return train(config, folder, console=Console(quiet=True), programs=PROGRAMS, **options)


def lines(folder: Path) -> list[dict[str, Any]]:
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record for record in found if record["split"] != GOODPUT]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, str]:
    """A run of 6 steps, evaluated at 4 and 6, and what it printed."""
    folder, output = tmp_path_factory.mktemp("finished") / "run", io.StringIO()
    outcome = train(tiny_config(), folder, console=Console(file=output, width=120), programs=PROGRAMS)
    return folder, outcome, output.getvalue()


class Noting:
    """An observer that notes its calls, wants the state of even steps and ends with step `last`."""

    def __init__(self, last: int) -> None:
        self.last, self.step, self.calls = last, 0, []

    @property
    def has_ended(self) -> bool:
        return self.step == self.last

    def begin(self, state: Any) -> None:
        self.calls.append(("begin", state))

    def before_step(self, step: int) -> None:
        self.calls.append(("before", step))

    def after_step(self, step: int, metrics: Any) -> None:
        self.step = step
        self.calls.append(("after", step, metrics))

    def needs_state(self, step: int) -> bool:
        return step % 2 == 0

    def take_state(self, step: int, state: Any) -> None:
        self.calls.append(("state", step, state))


def test_the_loop_tells_its_observer_of_each_step_until_it_ends() -> None:
    """A step adds a number, its batch, to another, its state; its metrics are the negative sum."""

    def state(number: int) -> TrainState:
        return TrainState(number, None, None, None, None)

    def step_fn(before: TrainState, batch: Batch) -> tuple[TrainState, int]:
        return state(before.step + batch.tokens), -(before.step + batch.tokens)

    def run(first: int, start: int, observer: Noting) -> int:
        return run_steps(step_fn, state(first), [Batch(i, None, None) for i in (1, 2, 3)], start, observer).step

    observer = Noting(last=4)
    assert run(100, 2, observer) == 103
    assert observer.calls == [
        ("begin", state(100)),
        *[("before", 3), ("after", 3, -101)],
        *[("before", 4), ("after", 4, -103), ("state", 4, state(103))],
    ]
    assert run(0, 0, Noting(last=9)) == 6
    assert run(7, 0, Noting(last=0)) == 7


def test_a_run_records_every_step_once(finished: tuple[Path, Outcome, str]) -> None:
    folder, outcome, _ = finished
    found = lines(folder)
    assert [(r["step"], r["split"]) for r in found] == [
        *[(step, "train") for step in (1, 2, 3, 4)],
        (4, "validation"),
        *[(step, "train") for step in (5, 6)],
        (6, "validation"),
    ]
    trained = [r for r in found if r["split"] == "train"]
    assert all(
        r.keys()
        == {"step", "split", "loss", "accuracy", "tokens", "grad_norm", "learning_rate", "skipped", "tokens_per_second"}
        for r in trained
    )
    assert trained[0]["loss"] == pytest.approx(np.log(9), abs=0.5)  # an untrained model is near uniform over V
    assert outcome.status == "finished" and outcome.step == 6 and outcome.validation == found[-1]


def test_a_run_folder_says_what_it_holds(finished: tuple[Path, Outcome, str]) -> None:
    folder, outcome, _ = finished
    record = json.loads((folder / "config.json").read_text())
    assert from_dict(Config, record["config"]) == tiny_config()
    resolved = from_dict(Config, record["resolved"])
    assert resolved.model.vocab_size is not None and resolved.data.seed == 0
    environment = json.loads((folder / "environment.json").read_text())
    (start,) = environment["starts"]
    assert start["versions"]["jax"] == jax.__version__ and start["devices"]["count"] == 4
    assert start["git"] is None or len(start["git"].removesuffix("+changes")) == 40
    assert set(environment["hashes"]) == {"data", "tokenizer"}
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG") and outcome.loss_plot == str(folder / "loss.png")
    assert outcome.checkpoint == str(folder / "checkpoints" / "6") and Path(outcome.checkpoint).is_dir()
    assert list((folder / "tensorboard").iterdir())


def test_a_run_tells_what_it_does(finished: tuple[Path, Outcome, str]) -> None:
    text = finished[2]
    for expected in ("devices", "jax " + jax.__version__, "blocks/*/mlp/up/kernel", "FLOPs per token", "6 steps × "):
        assert expected in text, expected
    assert "step 6/6  loss" in text and "validation loss" in text
    assert "\x1b" not in text  # no terminal, no escape codes


def test_load_run_gives_the_parameters_of_the_end(finished: tuple[Path, Outcome, str]) -> None:
    model, params, tokenizer = load_run(finished[0])
    text = "ABAB"
    logits = model.apply(params, jnp.array([tokenizer.encode(text)]))
    assert logits.shape == (1, 4, model.config.vocab_size)
    assert set(params["params"]["blocks"]) == {"0", "1"}


def test_a_finished_run_is_left_as_it_is(finished: tuple[Path, Outcome, str]) -> None:
    folder, outcome, _ = finished
    before = everything(folder)
    again = quietly(tiny_config(), folder)
    assert again == dataclasses.replace(outcome, status="already finished")
    after = everything(folder)
    assert {name for name in after if before.get(name) != after[name]} <= {"loss.png"}


def test_another_configuration_is_refused_with_the_difference(finished: tuple[Path, Outcome, str]) -> None:
    folder, _, _ = finished
    before = everything(folder)
    changed = tiny_config(seed=1, model={"width": 32})
    with pytest.raises(ConfigChanged, match=r"model\.width: 16 → 32, seed: 0 → 1"):
        quietly(changed, folder)
    with pytest.raises(ConfigChanged, match=r"train\.steps: 6 → 5"):
        quietly(tiny_config(steps=5), folder)
    with pytest.raises(ValueError, match="holds a run already"):
        quietly(tiny_config(), folder, resume=False)
    assert everything(folder) == before


def test_a_folder_that_is_written_to_is_left_alone(finished: tuple[Path, Outcome, str]) -> None:
    folder, _, _ = finished
    before = everything(folder)
    with RunFolder(folder).lock(), pytest.raises(RunLocked):
        quietly(tiny_config(steps=8), folder)
    assert everything(folder) == before


def test_more_steps_go_on_without_bending_the_schedule(tmp_path: Path) -> None:
    config = tiny_config(steps=4, schedule=LinearDecay(final=0.5))
    quietly(config, tmp_path)
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=7))
    with pytest.warns(UserWarning, match="ends with step 4, so from there to step 7 .* is 0.5 times its maximum"):
        assert quietly(longer, tmp_path).status == "finished"
    rates = [r["learning_rate"] for r in metrics.read(RunFolder(tmp_path), "train")]
    assert rates == pytest.approx([0.01, 0.00875, 0.0075, 0.00625, 0.005, 0.005, 0.005])


def test_log_every_thins_the_training_lines(tmp_path: Path) -> None:
    config = tiny_config(steps=7)
    quietly(dataclasses.replace(config, train=dataclasses.replace(config.train, log_every=3)), tmp_path)
    assert [r["step"] for r in lines(tmp_path) if r["split"] == "train"] == [3, 6, 7]


def test_a_mistake_that_shows_at_the_start_can_be_corrected_in_place(tmp_path: Path) -> None:
    bad = tiny_config(optimizer=dataclasses.replace(tiny_config().optimizer, decay=("no/such/*",)))
    with pytest.raises(ValueError, match="names no parameter"):
        quietly(bad, tmp_path)
    assert quietly(tiny_config(steps=1), tmp_path).status == "finished"


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.vocab_size \(3\) is too small"):
        quietly(tiny_config(model={"vocab_size": 3}), tmp_path)


def test_a_diverged_run_stops_with_good_parameters(tmp_path: Path) -> None:
    """At such a rate the first update throws the parameters so far that every later loss overflows."""
    config = tiny_config(steps=50, optimizer=Sgd(learning_rate=1e25))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, max_skipped=3, clip_norm=None))
    with pytest.raises(TrainingDiverged, match="not finite in [34] steps in a row, up to step") as error:
        quietly(config, tmp_path)
    skipped = [r["skipped"] for r in lines(tmp_path) if r["split"] == "train"]
    assert skipped[0] == 0 and skipped[-1] >= 3 and len(skipped) < 10
    _, params, _ = load_run(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert str(tmp_path / "checkpoints") in str(error.value)


def test_an_interrupt_saves_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Interrupts, "requested", lambda self, step: step == 4)
    outcome = quietly(tiny_config(), tmp_path)
    assert (outcome.status, outcome.step) == ("interrupted", 4)
    assert (tmp_path / "checkpoints" / "4").is_dir()
    # The evaluation that was due at step 4 was put off, so that the process could end soon.
    assert [r["step"] for r in lines(tmp_path) if r["split"] == "validation"] == []
    monkeypatch.undo()
    assert quietly(tiny_config(), tmp_path).status == "finished"
    assert [(r["step"], r["split"]) for r in metrics.read(RunFolder(tmp_path))] == [
        *[(step, "train") for step in (1, 2, 3, 4)],
        (4, "validation"),
        *[(step, "train") for step in (5, 6)],
        (6, "validation"),
    ]
    starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 4]


def test_a_run_whose_data_changed_is_refused(tmp_path: Path) -> None:
    quietly(tiny_config(steps=2), tmp_path)
    environment = json.loads((tmp_path / "environment.json").read_text())
    environment["hashes"]["data"] = "another"
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(ValueError, match="not the one that the run"):
        quietly(tiny_config(steps=4), tmp_path)


def test_the_best_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 1.0, 2.0])

    def make_evaluate(*_: Any) -> Any:
        return lambda params: {"loss": next(losses), "loss_standard_error": 0.1, "accuracy": 0.0, "tokens": 1}

    monkeypatch.setattr(session, "make_evaluate", make_evaluate)
    quietly(tiny_config(evaluation=Evaluation(every=2), checkpoint=Checkpoint(every=2)), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "6"]
    assert load_run(tmp_path, step=4) and load_run(tmp_path)


def test_a_profile_is_written_when_asked_for(tmp_path: Path) -> None:
    quietly(tiny_config(steps=9), tmp_path, profile=True)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_metrics_are_fetched_while_the_next_step_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The devices must have step s + 1 to work on before the host asks for the numbers of step s."""
    happened: list[str] = []
    compile_step, report = Programs.step, RunObserver._report

    def compile_and_note(*arguments: Any) -> Any:
        step = compile_step(*arguments)

        def noted(state: Any, batch: Any) -> Any:
            happened.append("dispatch")
            return step(state, batch)

        return noted

    def report_and_note(self: RunObserver) -> None:
        if self._pending is not None:
            happened.append(f"fetch {self.step}")
        report(self)

    monkeypatch.setattr(Programs, "step", compile_and_note)
    monkeypatch.setattr(RunObserver, "_report", report_and_note)
    quietly(tiny_config(steps=4, evaluation=Evaluation(every=9), checkpoint=Checkpoint(every=9)), tmp_path)
    assert happened == ["dispatch", "dispatch", "fetch 1", "dispatch", "fetch 2", "dispatch", "fetch 3", "fetch 4"]
