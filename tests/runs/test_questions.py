"""Questions that a run is asked while it trains: what is recorded, and that the training does not notice."""

import dataclasses
from pathlib import Path

import pytest

from gpt_jax import GPT
from gpt_jax.analysis.scoring import _programs
from gpt_jax.config import Bytes, Config, Copy, Recall, Suites, Text
from gpt_jax.config.errors import UserError
from gpt_jax.data import open_data
from gpt_jax.runs import questions
from gpt_jax.runs.address import run_address
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.goodput import EVALUATION, Stopwatch
from gpt_jax.runs.load import open_run
from gpt_jax.runs.metrics import SUITE, read
from gpt_jax.runs.questions import watch_suites
from gpt_jax.runs.record import recorded
from gpt_jax.runs.suites import evaluate_suites
from gpt_jax.training.sharding import make_mesh
from tests.analysis.test_suites import TEXT
from tests.runs.test_diagnostics import fingerprints, trained
from tests.runs.test_metrics import events
from tests.tiny import tiny_config

ASKED = Suites("copy, induction,text", every=2, questions=5)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Of a text whose validation set is 10% of it."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(TEXT[:4000])
    return tiny_config(data=Text(path=str(text), tokenizer=Bytes()), suites=ASKED)


@pytest.fixture(scope="module")
def asked(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(config, tmp_path_factory.mktemp("asked") / "run")


def test_the_training_does_not_notice(
    config: Config, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is asked from step 4 on has the parameters, moments and losses of one that is asked from
    the beginning, and the same answers from there on, bit for bit. They take no time of the training, and no program
    of their own for another run.
    """
    resolved = recorded(RunFolder(asked))[1]  # type: ignore[index]
    alone, _ = _programs(GPT(resolved.model), make_mesh())
    compiled, scores, switch, phases = alone._cache_size(), questions.scores, Stopwatch.switch, [""]
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=4), suites=Suites())
    folder = trained(short, tmp_path / "run")
    assert read(RunFolder(folder), SUITE) == []
    monkeypatch.setattr(Stopwatch, "switch", lambda self, phase: phases.append(phase) or switch(self, phase))
    during = []
    monkeypatch.setattr(questions, "scores", lambda result: during.append(phases[-1]) or scores(result))
    trained(config, folder)
    assert fingerprints(asked) == fingerprints(folder)
    of_both = [[record["loss"] for record in read(RunFolder(place))] for place in (asked, folder)]
    assert of_both[0] == of_both[1]
    assert read(RunFolder(folder), SUITE) == read(RunFolder(asked), SUITE)[1:]
    assert compiled == 2 == alone._cache_size()  # of rows of text, and of those that lack their last target
    assert set(during) == {EVALUATION}
    assert run_address(config, "data").hash == run_address(dataclasses.replace(config, suites=Suites()), "data").hash


def test_the_answers_are_those_of_the_command(asked: Path) -> None:
    """Of the same model and length, asked after training."""
    records = read(RunFolder(asked), SUITE)
    assert [record["step"] for record in records] == [2, 4, 6] and records[-1]["questions"] == 5
    for found in evaluate_suites(asked, ["copy", "induction"], questions=5, lengths=[16]):
        place, last = f"{found.suite}/repeated", records[-1]
        assert [last[f"{place}/{name}"] for name in ("accuracy", "low", "high")] == [found.value, found.low, found.high]
        assert last[f"{place}/chance"] == found.chance
    assert {"text/repeated_pair/loss", "text/new_pair/loss", "text/position_0/loss"} <= records[-1].keys()


def test_tensorboard_shows_them_beside_chance(asked: Path) -> None:
    tags = {value.tag for event in events(asked) for value in event.summary.value}
    assert {
        f"suite/{suite}/repeated/{name}" for suite in ("copy", "induction") for name in ("accuracy", "chance")
    } <= tags
    assert not [tag for tag in tags if tag.startswith("suite/") and tag.endswith(("/low", "/questions"))]


def test_what_a_run_cannot_be_asked_is_told_before_it_trains(config: Config, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    copying = tiny_config(data=Copy(symbols=8, length=4))
    of_words = dataclasses.replace(config, data=Text(path=str(tmp_path / "text.txt"), tokenizer=Bytes()))
    for unfit, names, sentence in [
        (config, "copy,reall", '"reall", which is no suite of a run on text: choose among needle, ruler'),
        (config, "needle", "50 different words .* or leave out the suites needle"),
        (copying, "recall", '"recall", which is no suite of a run on Copy: choose among copy'),
        (of_words, "copy,needle", "needle cannot be asked in rows of 16 tokens: .*leave it out of suites.names"),
    ]:
        unfit = dataclasses.replace(unfit, suites=Suites(names))
        with pytest.raises(UserError, match=sentence):
            trained(unfit, tmp_path / "run")
        assert not (tmp_path / "run" / "environment.json").exists()


def test_settings_that_ask_nothing_are_refused(config: Config) -> None:
    with pytest.raises(ValueError, match="suites.questions must be at least 2"):
        Suites(questions=1)
    with pytest.raises(ValueError, match="whole rows on a device: leave suites.names at None"):
        dataclasses.replace(config, mesh="data=2,sequence=2")


def test_questions_are_made_once_and_are_the_same_for_every_arm(config: Config) -> None:
    """Models of other sizes are asked the same; a task is asked at the length of its rows."""
    seen: list[list] = []
    for width in (8, 16):
        task = Recall(symbols=32, pairs=2, length=16)
        resolved = tiny_config(data=task, model={"width": width, "vocab_size": 32}, suites=Suites("recall", 2, 4))
        data = open_data(task, 16, 0)
        (watch,) = watch_suites(resolved, data, make_mesh())
        seen.append([])
        monkey = pytest.MonkeyPatch()
        with monkey.context() as patch:
            patch.setattr(
                "gpt_jax.analysis.scoring.Scorer.terms",
                lambda self, batch: seen[-1].append(batch.tokens.tolist()) or [batch.weights * 1.0] * 3,  # noqa: B023
            )
            once = watch.measure({})
            first = list(seen[-1])
            assert watch.measure({}) == once and seen[-1][len(first) :] == first
        kinds = ("recall", "recall/noisy", "recall/stacked", "recall/forgetting", "recall/full_of_pairs")
        assert {name for name in once if name.endswith("accuracy")} == {f"{kind}/accuracy" for kind in kinds}
    assert seen[0] == seen[1]


@pytest.mark.slow
def test_a_mesh_changes_them_by_rounding_alone(config: Config, asked: Path) -> None:
    """Of parameters that are divided over the devices."""
    mesh = make_mesh(axes="fsdp=2,tensor=2,data=-1")
    opened = open_run(asked, None, mesh)
    data = open_data(config.data, 16, config.data_seed, progress=False)
    (watch,) = watch_suites(opened.config, data, mesh)
    found, of_one = watch.measure(opened.params), read(RunFolder(asked), SUITE)[-1]
    assert found == pytest.approx({name: of_one[name] for name in found}, rel=1e-3, abs=1e-4)
    assert len(of_one) == len(found) + 3
