"""A study's claim and log: frozen before the first run, and no look or change is forgotten."""

import dataclasses
import importlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gpt_jax.ablation import history, log, records
from gpt_jax.ablation.claim import CLAIM, Claim, ClaimedStudy, claimed, read_claim, study_from_claim, update
from gpt_jax.ablation.combine import vary
from gpt_jax.ablation.endpoint import PositionLoss
from gpt_jax.ablation.findings import StudyResults
from gpt_jax.ablation.results import collect, write_results
from gpt_jax.ablation.schema import ArmRecord, Budget, PlannedRunRecord, RunOutcome, StudyRecord
from gpt_jax.ablation.sentence import with_marks
from gpt_jax.ablation.study import Arm, Probe, Study, Tuning
from gpt_jax.config import Alibi, Attention, Config, Copy, Rope
from gpt_jax.config.conversion import from_config_dict
from gpt_jax.config.errors import ConfigError
from gpt_jax.runs.folder import METRICS, RunFolder
from tests.tiny import tiny_config

KV = "model.attention.kv_heads"
STUDIES = sorted(file.stem for file in (Path(__file__).parents[2] / "configs" / "ablations").glob("*.py"))
UNTUNED = "at the baseline’s learning rate: nothing was tuned"
DEVICES = {"devices": {"kind": "cpu", "count": 1, "processes": 1, "machine": "x86_64"}}


def small_study(**changes: Any) -> Study:
    """Two arms that were never trained; the numbers of their runs are made up by `finish`."""
    options = {"seeds": (0, 1, 2), "fresh_seeds": 0, "aa": False, "most_seeds": 6} | changes
    arms = options.pop("arms", vary(KV, mha=2, mqa=1))
    margin = options.pop("smallest_difference", 0.01)
    return Study("Fewer heads?", options.pop("base", tiny_config()), arms, "mha", (KV,), margin, **options)


def start(folder: Path, study: Study, forced: bool = False, ratio: float | None = None, **record: Any) -> RunFolder:
    """What `write_plan` writes, without data and without matching; `ratio` is the second arm's of its budget."""
    place = RunFolder(folder)
    place.make("runs")
    history.begin(place, study, "data", "python -m experiments.ablate", forced)
    names = list(study.configs())
    written = StudyRecord(
        question=study.question,
        smallest_difference=study.smallest_difference,
        baseline=study.baseline,
        seeds=study.seeds,
        is_smoke=study.is_smoke,
        is_forced=forced,
        budget=Budget(None if ratio is None else "params"),
        arms=tuple(
            ArmRecord(
                name=name,
                config={},
                budget_ratio=None if ratio is None else (1.0 if name == "mha" else ratio),
                is_ranked=name == "mha" or ratio is None or abs(ratio - 1) <= 0.01 or forced,
            )
            for name in names
        ),
        runs=tuple(
            PlannedRunRecord(name, seed, 0.01, "arm", f"runs/{name}-{seed}", 6, "hash")
            for seed in study.seeds
            for name in names
        ),
        **record,
    )
    records.write(written, place, "study.json")
    return place


def finish(place: RunFolder, count: int | None = None, shift: float = 0.0) -> None:
    """Ends the first `count` runs of the study."""
    for run in records.read(StudyRecord, place, "study.json").runs[:count]:
        loss = 2.0 + 0.001 * run.seed + (0.05 + 0.002 * run.seed if run.arm == "mqa" else 0.0) + shift
        own = RunFolder(place.file(run.folder))
        own.make()
        own.write_text(METRICS, json.dumps({"step": 6, "split": "validation", "loss": loss}) + "\n")
        records.write(
            RunOutcome("finished", 1.0, None, DEVICES | {"settings": {"seed": run.seed}}), own, "outcome.json"
        )


def whats(place: RunFolder) -> list[str]:
    return [event.what for event in log.read_log(place)]


def told(place: RunFolder) -> list[str]:
    return [event.text for event in log.read_log(place) if event.what == log.CHANGE]


def marks_of(place: RunFolder) -> tuple[str, ...]:
    return tuple(mark for mark in collect(place.path).marks if mark != UNTUNED)


# ── a study and its claim ────────────────────────────────────────────────────────────────────────────────────────────


def round_trip(study: Study) -> Study:
    text = json.dumps(dataclasses.asdict(claimed(study, "data")))
    return study_from_claim(records.from_json(ClaimedStudy, json.loads(text), CLAIM))


@pytest.mark.parametrize("name", [name for name in STUDIES if name != "base"])
def test_shipped_studies_survive_the_claim(name: str) -> None:
    module = importlib.import_module(f"configs.ablations.{name}")
    base = from_config_dict(Config, module.get_config())
    for args in ((), ("tuned",)) if name != "qk_norm" else ((),):
        study = module.get_study(base, *args)
        again = round_trip(study)
        assert again == study and again.configs() == study.configs()
        assert (study.tuning is None) == (not args)


def test_every_field_of_a_study_is_in_the_claim() -> None:
    """An arm keeps its own words: what a dataclass leaves at its defaults is not said, what a group names is."""
    own = {field.name for field in dataclasses.fields(Study)}
    assert {field.name for field in dataclasses.fields(ClaimedStudy)} == own | {"data_hash"}
    position = {"type": "Rope", "theta": 500.0}
    study = small_study(
        arms=(
            Arm("mha"),
            Arm("alibi", {"model.attention.position": Alibi()}, ("a", "b")),
            Arm("group", {"model.attention.position": position}),
            Arm("nested", {"model.letters.A": {"attention": Attention(heads=2, position=Rope(theta=300.0))}}),
            Arm("none", {"model.attention.position": None}),
        ),
        endpoint=PositionLoss(2, 5),
        probe=Probe("length", {3: Copy(symbols=8, length=3), 4: Copy(symbols=8, length=4)}),
        tuning=Tuning((1e-3, 3e-3), (0.1,), (5,), (1000,), 1),
        match="params",
        free={"alibi": "model.mlp.width"},
        free_bounds=(4, 512),
        extrapolation=(2,),
        fails_above=3,
        fresh_seeds=1,
        aa=True,
        is_smoke=True,
    )
    again = round_trip(study)
    assert again == study
    assert again.arms[1].changes == {"model.attention.position": Alibi()} and again.arms[2].changes[
        "model.attention.position"
    ] == dict(position)


# ── a start, a look, a change ────────────────────────────────────────────────────────────────────────────────────────


def test_a_finished_study_has_its_outcome_and_no_marks(tmp_path: Path) -> None:
    place = start(tmp_path, small_study())
    frozen = json.loads(place.read_text(CLAIM))["frozen"]
    assert frozen["study"]["seeds"] == [0, 1, 2] and frozen["devices"] and frozen["versions"]["jax"]
    finish(place)
    found = write_results(tmp_path)
    assert found.marks == (UNTUNED,) and (found.planned_seeds, found.most_seeds) == (3, 6)
    assert [event.what for event in found.log] == ["start", "look"]
    assert "seeds done in all arms: 3 of 3 planned" in found.log[-1].text and found.log[-1].runs_done == 6
    after = json.loads(place.read_text(CLAIM))
    assert after["frozen"] == frozen
    claim, is_intact = read_claim(place) or pytest.fail("no claim")
    outcome = claim.outcome
    assert is_intact and outcome is not None and outcome.verdict == found.verdict and outcome.devices == ("cpu",)
    assert outcome.arms["mqa"].values == {"0": 2.05, "1": pytest.approx(2.053), "2": pytest.approx(2.056)}
    assert outcome.arms["mqa"].difference == pytest.approx(0.052) and outcome.arms["mqa"].interval is not None
    assert outcome.shared == DEVICES and outcome.runs["runs/mqa-1"].parts == {"settings": {"seed": 1}}


def test_equal_looks_are_one(tmp_path: Path) -> None:
    place = start(tmp_path, small_study())
    write_results(tmp_path)
    assert whats(place) == ["start"], "nothing was to be seen"
    for count in (2, 2, 3, 3):
        finish(place, count)
        write_results(tmp_path)
    start(tmp_path, small_study())
    write_results(tmp_path)
    assert whats(place) == ["start", "look", "look", "start"]


def test_a_change_before_results_replaces_the_claim(tmp_path: Path) -> None:
    start(tmp_path, small_study())
    place = start(tmp_path, small_study(smallest_difference=0.02, seeds=(0, 1, 2, 3)))
    assert told(place) == ["the margin: 0.01 → 0.02", "the number of seeds: 3 → 4"]
    claim = records.read(Claim, place, CLAIM)
    assert claim.frozen.study.smallest_difference == 0.02 and len(claim.frozen.study.seeds) == 4 and not claim.changes
    finish(place)
    assert marks_of(place) == ()


THIRD = vary(KV, mha=2, mqa=1) + (Arm("mqa-wide", {KV: 1, "model.mlp.width": 64}),)
LONGER = tiny_config(7)


@pytest.mark.parametrize(
    ("changes", "mark"),
    [
        ({"smallest_difference": 0.02}, "the margin was changed from 0.01 to 0.02"),
        (
            {"endpoint": PositionLoss(2)},
            "the endpoint was changed from final validation loss to validation loss at positions 2 to the end",
        ),
        ({"arms": THIRD}, 'the arm "mqa-wide" was added'),
        ({"base": LONGER}, "train.steps was changed from 6 to 7"),
        ({"fails_above": 2.5}, "the loss above which a run failed was changed from none to 2.5"),
        ({"most_seeds": 9}, "the largest number of seeds was changed from 6 to 9"),
        ({"tuning": Tuning((1e-3,))}, "the tuning was changed from none to "),
        ({"seeds": (3, 4, 5)}, "the first seed was changed from 0 to 3"),
    ],
)
def test_a_change_after_results_is_in_the_headline(changes: dict[str, Any], mark: str, tmp_path: Path) -> None:
    place = start(tmp_path, small_study())
    frozen = json.loads(place.read_text(CLAIM))["frozen"]
    finish(place)
    write_results(tmp_path)
    study = small_study(**changes)
    start(tmp_path, study)
    (found,) = marks_of(place)
    assert found.startswith(mark) and found.endswith("after results of 6 runs were seen")
    assert len(told(place)) == 1 and json.loads(place.read_text(CLAIM))["frozen"] == frozen
    assert study_from_claim(records.read(Claim, place, CLAIM).study) == study, "it runs as it is now"
    found = collect(tmp_path)
    assert (found.planned_seeds, found.most_seeds) == (3, 6), "the claim's"
    start(tmp_path, small_study())
    assert marks_of(place) == () and len(told(place)) == 2, "taken back, and in the log"


def test_a_change_without_a_look_says_so(tmp_path: Path) -> None:
    place = start(tmp_path, small_study())
    finish(place, 1)
    start(tmp_path, small_study(smallest_difference=0.02))
    assert marks_of(place) == ("the margin was changed from 0.01 to 0.02 after 1 run had finished",)


def test_a_run_that_was_stopped_has_shown_its_losses(tmp_path: Path) -> None:
    """Whoever stops a run before its end has seen as much; one without an evaluation has shown nothing."""
    place = start(tmp_path, small_study())
    run = RunFolder(tmp_path / "runs" / "mqa-0")
    run.make()
    run.write_text(METRICS, json.dumps({"step": 1, "split": "train", "loss": 3.0}) + "\n")
    start(tmp_path, small_study(smallest_difference=0.02))
    assert marks_of(place) == ()
    run.write_text(METRICS, json.dumps({"step": 4, "split": "validation", "loss": 2.1}) + "\n")
    start(tmp_path, small_study(smallest_difference=0.05))
    assert marks_of(place) == ("the margin was changed from 0.02 to 0.05 after a run had shown its losses",)


def test_secondary_changes_are_logged_only(tmp_path: Path) -> None:
    place = start(tmp_path, small_study())
    finish(place)
    start(tmp_path, small_study(extrapolation=(2,), base=tiny_config(prompt="other")))
    assert marks_of(place) == () and told(place) == ["the list of longer contexts: [] → [2]"]


def test_more_seeds_are_legal_up_to_the_most(tmp_path: Path) -> None:
    place = start(tmp_path, small_study())
    finish(place)
    write_results(tmp_path)
    start(tmp_path, small_study(seeds=(0, 1, 2, 3, 4)))
    assert told(place) == ["the number of seeds: 3 → 5"] and marks_of(place) == ()
    found = collect(tmp_path)
    assert found.planned_seeds == 3 and found.seeds == (0, 1, 2, 3, 4)
    for most in (6, 20):  # whatever the study says now
        with pytest.raises(ConfigError, match="allows 6 seeds, not 7"):
            start(tmp_path, small_study(seeds=tuple(range(7)), most_seeds=max(7, most)))


def test_fewer_seeds_than_planned_give_no_verdict(tmp_path: Path) -> None:
    place = start(tmp_path, small_study())
    finish(place, 1)
    start(tmp_path, small_study(seeds=(0, 1)))
    finish(place)
    found = write_results(tmp_path)
    assert found.planned_seeds == 3 and marks_of(place) == ()
    versus = found.arms[1].versus_baseline
    assert versus is not None and versus.verdict == "undecided"
    assert records.read(Claim, place, CLAIM).outcome is None


# ── what was deleted or broken ───────────────────────────────────────────────────────────────────────────────────────


def test_a_deleted_claim_is_told(tmp_path: Path) -> None:
    place = start(tmp_path, small_study())
    finish(place)
    place.file(CLAIM).unlink()
    assert marks_of(place) == ("there is no claim: nothing says what was planned before 6 runs had finished",)
    start(tmp_path, small_study(smallest_difference=0.5))
    assert marks_of(place) == ("the claim was written after 6 runs had finished",)
    assert told(place) == ["the claim was written after 6 runs had finished"]


def test_a_deleted_study_hides_no_runs(tmp_path: Path) -> None:
    place = start(tmp_path, small_study())
    finish(place)
    for name in (CLAIM, log.LOG, "study.json"):
        place.file(name).unlink()
    start(tmp_path, small_study(smallest_difference=0.5))
    assert marks_of(place) == ("the claim was written after 6 runs had finished",)


def test_a_deleted_log_is_told(tmp_path: Path) -> None:
    place = start(tmp_path, small_study())
    finish(place)
    place.file(log.LOG).unlink()
    mark = "the log of starts and looks begins after 6 runs had finished"
    assert marks_of(place) == (mark,)
    start(tmp_path, small_study())
    assert marks_of(place) == (mark,) and told(place) == ["the log begins after 6 runs had finished"]


def test_an_edited_claim_is_told(tmp_path: Path) -> None:
    place = start(tmp_path, small_study())
    finish(place)
    text = place.read_text(CLAIM).replace('"smallest_difference": 0.01', '"smallest_difference": 0.02')
    place.write_text(CLAIM, text)
    assert marks_of(place) == ("the claim was edited after it was written",)


def test_the_frozen_part_stays_byte_for_byte(tmp_path: Path) -> None:
    """Also where a later version has read it, whose records have other fields."""
    place = start(tmp_path, small_study())
    written = json.loads(place.read_text(CLAIM))
    del written["frozen"]["git"]
    place.write_json(CLAIM, written)
    update(place, changes=())
    assert json.loads(place.read_text(CLAIM))["frozen"] == written["frozen"]


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    place = start(tmp_path, small_study())
    with open(tmp_path / log.LOG, "a") as file:
        file.write('{"time": "2026-01-01T00:00:00Z", "wh')
    assert whats(place) == ["start"]
    start(tmp_path, small_study())
    assert whats(place) == ["start", "start"]
    assert len((tmp_path / log.LOG).read_text().splitlines()) == 3


def _add(folder: Path, number: int) -> None:
    place = RunFolder(folder)
    for i in range(20):
        with log.alone(place):
            log.append(place, [log.event(log.LOOK, f"{number} {i} " + "x" * 5000, i)])


def test_writers_share_the_log(tmp_path: Path) -> None:
    """Lines longer than a write of a file's buffer stay whole."""
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(_add, [tmp_path] * 3, range(3)))
    found = [event.text[:5].split()[:2] for event in log.read_log(RunFolder(tmp_path))]
    assert sorted(found) == sorted([str(n), str(i)] for n in range(3) for i in range(20))


# ── the other marks ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_marks_of_budgets(tmp_path: Path) -> None:
    place = start(tmp_path / "forced", small_study(), forced=True, ratio=1.314)
    assert marks_of(place) == ("mqa is ranked though its params are 1.31 × the baseline’s, by --force",)
    found = collect(place.path)
    assert found.is_forced and not found.is_smoke
    place = start(tmp_path / "off", small_study(), ratio=0.5)
    assert marks_of(place) == ("mqa is not ranked: its params are 0.50 × the baseline’s",)
    assert marks_of(start(tmp_path / "near", small_study(), ratio=1.009)) == ()
    assert marks_of(start(tmp_path / "needless", small_study(), forced=True, ratio=1.0)) == ()


def test_marks_of_size_and_rates(tmp_path: Path) -> None:
    assert collect(start(tmp_path / "plain", small_study()).path).marks == (UNTUNED,)
    smoke = collect(start(tmp_path / "smoke", small_study(is_smoke=True)).path)
    assert smoke.marks == ("a smoke test: decides nothing", UNTUNED) and smoke.is_smoke
    assert with_marks(smoke).split("\n") == [smoke.verdict, *(f"  note: {mark}" for mark in smoke.marks)]
    tuned: StudyResults = collect(start(tmp_path / "tuned", small_study(), tuning={"rates": [1e-3]}).path)
    assert tuned.marks == ()
    assert collect(start(tmp_path / "swept", small_study(), learning_rates=(1e-3, 1e-2)).path).marks == ()
