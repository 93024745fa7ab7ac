"""Several runs in one program: each is the run that it would be alone."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gpt_jax.config import Checkpoint, Config, Ema, Evaluation, Suites
from gpt_jax.runs import metrics, together
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.load import load_run
from gpt_jax.runs.loop import TrainingDiverged
from gpt_jax.runs.session import Outcome
from gpt_jax.runs.together import train_together
from gpt_jax.runs.train import train
from tests.tiny import PROGRAMS, tiny_config


def configs(**changes: Any) -> list[Config]:
    asked = Suites("copy", every=4, questions=4)
    base = tiny_config(
        **{"evaluation": Evaluation(every=4), "checkpoint": Checkpoint(every=2), "suites": asked} | changes
    )
    block = dataclasses.replace(base.model.blocks[0], dropout=0.1)
    base = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, blocks=(block,) * 2),
        train=dataclasses.replace(base.train, average=Ema(0.6)),
    )
    return [dataclasses.replace(base, seed=seed) for seed in (0, 1, 2)]


def folders(place: Path, count: int = 3) -> list[Path]:
    return [place / str(i) for i in range(count)]


def records(folder: Path) -> list[dict[str, Any]]:
    found = [*metrics.read(RunFolder(folder)), *metrics.read(RunFolder(folder), metrics.SUITE)]
    return [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in found]


def params(folder: Path) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(load_run(folder)[1])]


def equal(a: Path, b: Path) -> bool:
    return records(a) == records(b) and all((x == y).all() for x, y in zip(params(a), params(b), strict=True))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    places = folders(tmp_path_factory.mktemp("together"))
    ends = train_together(configs(), places, programs=PROGRAMS)
    assert [end.status for end in ends if isinstance(end, Outcome)] == ["finished"] * 3
    return places


def test_each_run_is_what_it_would_be_alone(done: list[Path], tmp_path: Path) -> None:
    """Seeds of parameters, data and dropout: losses, evaluations and parameters agree to rounding."""
    for config, place, alone in zip(configs(), done, folders(tmp_path), strict=True):
        train(config, alone, programs=PROGRAMS)
        ours, theirs = records(place), records(alone)
        assert [(r["step"], r["split"]) for r in ours] == [(r["step"], r["split"]) for r in theirs]
        for name in ("loss", "copy/accuracy"):
            of_both = [[r[name] for r in rs if name in r] for rs in (ours, theirs)]
            assert of_both[0] == pytest.approx(of_both[1], rel=1e-5) and len(of_both[0]) > 1
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(params(place), params(alone), strict=True))
    assert not np.allclose(params(done[0])[0], params(done[1])[0], atol=1e-2)


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_group_goes_on_as_if_nothing_had_been(
    stop: int, done: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Interrupts, "_ask", lambda self, step: step == stop)
        ends = train_together(configs(), folders(tmp_path), programs=PROGRAMS)
    assert [(e.status, e.step) for e in ends if isinstance(e, Outcome)] == [("interrupted", stop)] * 3
    train_together(configs(), folders(tmp_path), programs=PROGRAMS)
    assert all(equal(a, b) for a, b in zip(done, folders(tmp_path), strict=True))


def test_a_group_goes_on_from_what_all_of_it_have(
    done: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between the checkpoints of two runs, and a damaged one."""
    kept = configs(checkpoint=Checkpoint(every=2, keep=9))
    with monkeypatch.context() as patched:
        patched.setattr(Interrupts, "_ask", lambda self, step: step == 5)
        train_together(kept, folders(tmp_path), programs=PROGRAMS)
    for part in (tmp_path / "1" / "checkpoints" / "5").rglob("*"):
        if part.is_file() and part.stat().st_size > 200:
            part.write_bytes(part.read_bytes()[:-100] + bytes(100))
    with pytest.warns(UserWarning, match="going back"):
        ends = train_together(kept, folders(tmp_path), programs=PROGRAMS)
    assert all(isinstance(end, Outcome) and end.status == "finished" for end in ends)
    assert all(equal(a, b) for a, b in zip(done, folders(tmp_path), strict=True))
    assert list((tmp_path / "1" / "damaged").iterdir())


def test_a_crash_between_the_saves_of_two_runs_costs_what_came_after_the_one_before(
    done: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Interrupts, "_ask", lambda self, step: step == 4)
        train_together(configs(), folders(tmp_path), programs=PROGRAMS)
    shutil.rmtree(tmp_path / "0")
    shutil.copytree(done[0], tmp_path / "0")  # the first run saved its last step, the others did not
    train_together(configs(), folders(tmp_path), programs=PROGRAMS)
    assert all(equal(a, b) for a, b in zip(done, folders(tmp_path), strict=True))
    starts = [json.loads((place / "environment.json").read_text())["starts"] for place in folders(tmp_path)]
    assert [start[-1]["step"] for start in starts] == [4] * 3


def wild(given: list[Config]) -> list[Config]:
    """The second of them with a learning rate that no number survives."""
    changed = [dataclasses.replace(c, train=dataclasses.replace(c.train, max_skipped=2)) for c in given]
    optimizer = dataclasses.replace(changed[1].optimizer, learning_rate=float("1e38"))  # type: ignore[type-var]
    return [changed[0], dataclasses.replace(changed[1], optimizer=optimizer), changed[2]]


@pytest.mark.parametrize("stop", [None, 5])
def test_a_run_that_diverges_takes_no_other_with_it(
    stop: int | None, done: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it go on, however often the group is interrupted and begun again."""
    with monkeypatch.context() as patched:
        patched.setattr(Interrupts, "_ask", lambda self, step: step == stop)
        before = train_together(wild(configs()), folders(tmp_path), programs=PROGRAMS)
    assert isinstance(before[1], TrainingDiverged) and "lower optimizer.learning_rate" in str(before[1])
    ended, environment = records(tmp_path / "1"), (tmp_path / "1" / "checkpoints").iterdir()
    steps = sorted(path.name for path in environment)
    ends = train_together(wild(configs()), folders(tmp_path), programs=PROGRAMS)
    assert isinstance(ends[1], TrainingDiverged) and str(ends[1]) == str(before[1])
    assert records(tmp_path / "1") == ended
    assert sorted(path.name for path in (tmp_path / "1" / "checkpoints").iterdir()) == steps
    for i in (0, 2):
        end = ends[i]
        assert isinstance(end, Outcome) and end.step == 6
        assert records(folders(tmp_path)[i]) == records(done[i])


def test_a_diverged_run_diverges_again_at_once(tmp_path: Path) -> None:
    config = wild(configs())[1]
    for _ in range(2):
        with pytest.raises(TrainingDiverged, match="up to step"):
            train(config, tmp_path, programs=PROGRAMS)
    assert len({r["step"] for r in records(tmp_path) if r["split"] == "train"}) < 6


def test_states_are_not_held_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a group trains there are its stacked states, and nothing of what they were made of."""
    found: list[int] = []

    def measured(step_fn: Any, states: Any, *_: Any) -> None:
        found.extend([held() - before, sum(x.nbytes for x in jax.tree.leaves(states))])

    def held() -> int:
        return sum(x.nbytes for x in jax.live_arrays())

    before = held()
    monkeypatch.setattr(together, "run_steps", measured)
    train_together(configs(), folders(tmp_path), programs=PROGRAMS)
    assert found[0] < 1.2 * found[1]


def test_runs_that_differ_otherwise_are_refused(tmp_path: Path) -> None:
    first, second, _ = configs()
    other = dataclasses.replace(second, train=dataclasses.replace(second.train, steps=9))
    with pytest.raises(ValueError, match="seed and learning rate only"):
        train_together([first, other], folders(tmp_path, 2), programs=PROGRAMS)
    assert not list(tmp_path.glob("*/metrics.jsonl"))


def test_a_finished_group_is_not_trained_again(done: list[Path]) -> None:
    before = [records(place) for place in done]
    ends = train_together(configs(), done, programs=PROGRAMS)
    assert [end.status for end in ends if isinstance(end, Outcome)] == ["already finished"] * 3
    assert [records(place) for place in done] == before
