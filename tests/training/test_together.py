"""Several runs in one program: each is the run that it would be alone."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gpt_jax.config import Checkpoint, Config, Evaluation
from gpt_jax.run import Outcome, load_run, train, train_together
from gpt_jax.training import metrics
from gpt_jax.training.interrupt import Interrupts
from gpt_jax.training.loop import TrainingDiverged
from gpt_jax.training.programs import Programs
from gpt_jax.training.storage import RunFolder
from tests.tiny import tiny_config


def configs(**changes: Any) -> list[Config]:
    base = tiny_config(**{"evaluation": Evaluation(every=4), "checkpoint": Checkpoint(every=2)} | changes)
    block = dataclasses.replace(base.model.blocks[0], dropout=0.1)
    base = dataclasses.replace(base, model=dataclasses.replace(base.model, blocks=(block,) * 2))
    return [dataclasses.replace(base, seed=seed) for seed in (0, 1, 2)]


def folders(place: Path, count: int = 3) -> list[Path]:
    return [place / str(i) for i in range(count)]


def records(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in metrics.read(RunFolder(folder))]


def params(folder: Path) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(load_run(folder)[1])]


def equal(a: Path, b: Path) -> bool:
    return records(a) == records(b) and all((x == y).all() for x, y in zip(params(a), params(b), strict=True))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    places = folders(tmp_path_factory.mktemp("together"))
    ends = train_together(configs(), places)
    assert [end.status for end in ends if isinstance(end, Outcome)] == ["finished"] * 3
    return places


def test_each_run_is_what_it_would_be_alone(done: list[Path], tmp_path: Path) -> None:
    """Seeds of parameters, data and dropout: losses, evaluations and parameters agree to rounding."""
    programs = Programs()
    for config, place, alone in zip(configs(), done, folders(tmp_path), strict=True):
        train(config, alone, programs=programs)
        ours, theirs = records(place), records(alone)
        assert [(r["step"], r["split"]) for r in ours] == [(r["step"], r["split"]) for r in theirs]
        assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in theirs], rel=1e-5)
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(params(place), params(alone), strict=True))
    assert not np.allclose(params(done[0])[0], params(done[1])[0], atol=1e-2)


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_group_goes_on_as_if_nothing_had_been(
    stop: int, done: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Interrupts, "_ask", lambda self, step: step == stop)
        ends = train_together(configs(), folders(tmp_path))
    assert [(e.status, e.step) for e in ends if isinstance(e, Outcome)] == [("interrupted", stop)] * 3
    train_together(configs(), folders(tmp_path))
    assert all(equal(a, b) for a, b in zip(done, folders(tmp_path), strict=True))


def test_a_group_goes_on_from_what_all_of_it_have(
    done: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between the checkpoints of two runs, and a damaged one."""
    kept = configs(checkpoint=Checkpoint(every=2, keep=9))
    with monkeypatch.context() as patched:
        patched.setattr(Interrupts, "_ask", lambda self, step: step == 5)
        train_together(kept, folders(tmp_path))
    for part in (tmp_path / "1" / "checkpoints" / "5").rglob("*"):
        if part.is_file() and part.stat().st_size > 200:
            part.write_bytes(part.read_bytes()[:-100] + bytes(100))
    with pytest.warns(UserWarning, match="going back"):
        ends = train_together(kept, folders(tmp_path))
    assert all(isinstance(end, Outcome) and end.status == "finished" for end in ends)
    assert all(equal(a, b) for a, b in zip(done, folders(tmp_path), strict=True))
    assert list((tmp_path / "1" / "damaged").iterdir())


def test_a_run_that_diverges_takes_no_other_with_it(done: list[Path], tmp_path: Path) -> None:
    first, second, third = configs()
    train_config = dataclasses.replace(first.train, max_skipped=2)
    changed = [dataclasses.replace(c, train=train_config) for c in (first, second, third)]
    wild = dataclasses.replace(second.optimizer, learning_rate=float("1e38"))  # type: ignore[type-var]
    changed[1] = dataclasses.replace(changed[1], optimizer=wild)
    ends = train_together(changed, folders(tmp_path))
    assert isinstance(ends[1], TrainingDiverged) and "lower optimizer.learning_rate" in str(ends[1])
    for i in (0, 2):
        end = ends[i]
        assert isinstance(end, Outcome) and end.status == "finished"
        assert records(folders(tmp_path)[i]) == records(done[i])


def test_runs_that_differ_otherwise_are_refused(tmp_path: Path) -> None:
    first, second, _ = configs()
    other = dataclasses.replace(second, train=dataclasses.replace(second.train, steps=9))
    with pytest.raises(ValueError, match="seed and learning rate only"):
        train_together([first, other], folders(tmp_path, 2))
    assert not list(tmp_path.glob("*/metrics.jsonl"))


def test_a_finished_group_is_not_trained_again(done: list[Path]) -> None:
    before = [records(place) for place in done]
    ends = train_together(configs(), done)
    assert [end.status for end in ends if isinstance(end, Outcome)] == ["already finished"] * 3
    assert [records(place) for place in done] == before
