"""The tuning of arms: equally many trials for all, a grid that grows past its edges, a choice that no kill can move."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpt_jax.ablation import records, stages
from gpt_jax.ablation.endpoint import RateSensitivity
from gpt_jax.ablation.findings import StudyResults
from gpt_jax.ablation.plan import make_plan
from gpt_jax.ablation.planned import shard_of
from gpt_jax.ablation.redone import check_shard
from gpt_jax.ablation.runner import Runner, write_plan
from gpt_jax.ablation.schema import StudyRecord, Trial
from gpt_jax.ablation.study import Study, Tuning
from gpt_jax.ablation.tuning import Search, best, search, tuned
from gpt_jax.config.errors import ConfigError
from gpt_jax.runs.folder import RunFolder
from tests.ablation.test_runner import asked, collect, run, small_study
from tests.tiny import PROGRAMS

RATES = (1e-3, 1e-2, 1e-1)
Loss = Callable[[Trial], float]
Losses = dict[str, dict[Trial, float]]


def at(rate: float) -> Loss:
    """A loss that is least at `rate`."""
    return lambda trial: abs(math.log10(trial.learning_rate / rate))


def play(study: Study, loss: dict[str, Loss], known: Losses | None = None) -> tuple[Search, Losses]:
    """The search to its end."""
    losses: Losses = {name: {} for name in loss} if known is None else known
    while not (found := search(study, losses)).is_over:
        for name, tried in found.tried.items():
            losses[name] |= {trial: loss[name](trial) for trial in tried}
    return found, losses


def tuned_study(tuning: Tuning | None = None, **changes: Any) -> Study:
    return small_study(tuning=tuning or Tuning(RATES), **changes)


def rates(found: Search, name: str) -> list[float]:
    return [trial.learning_rate for trial in found.tried[name]]


def test_a_grid_grows_past_its_edges() -> None:
    """One arm's best is at either edge and the other's within: each adds one rate in each round, geometrically."""
    for edge, added in ((1e-6, [1e-4, 1e-5]), (1e3, [1.0, 10.0])):
        found, losses = play(tuned_study(), {"mha": at(edge), "mqa": at(2e-2)})
        assert rates(found, "mha") == [*RATES, *added]
        assert rates(found, "mqa") == [*RATES, 0.0316228, 0.0177828]
        assert tuned(found.tried["mha"], losses["mha"], True).is_at_edge
        assert not tuned(found.tried["mqa"], losses["mqa"], True).is_at_edge


def test_rounds_end_where_no_best_is_at_an_edge() -> None:
    found, _ = play(tuned_study(), {"mha": at(1e-2), "mqa": at(1.2e-2)})
    assert rates(found, "mha") == rates(found, "mqa") == list(RATES)
    found, _ = play(tuned_study(Tuning(RATES, rounds=0)), {"mha": at(1.0), "mqa": at(1.0)})
    assert rates(found, "mha") == list(RATES)
    found, _ = play(tuned_study(Tuning((1e-2,))), {"mha": at(1.0), "mqa": at(1.0)})
    assert rates(found, "mha") == [1e-2]


def test_decay_and_warmup_are_tried_at_the_best_so_far() -> None:
    """The base has decay 0.1, which is not run twice; a worse decay is not kept for the warm-ups."""
    tuning = Tuning(RATES, weight_decays=(0.0, 0.1, 0.5), warmups=(2, 4), rounds=0)

    def loss(trial: Trial) -> float:
        assert trial.weight_decay is not None and trial.warmup is not None
        return at(1e-2)(trial) + abs(trial.weight_decay - 0.5) + abs(trial.warmup - 4)

    study = tuned_study(tuning)
    start = study.base.optimizer.weight_decay
    found, losses = play(study, {"mha": loss, "mqa": at(1e-1)})
    settings = [(t.learning_rate, t.weight_decay, t.warmup) for t in found.tried["mha"]]
    first = [(rate, start, 0) for rate in RATES]
    decays = [(1e-2, decay, 0) for decay in (0.0, 0.1, 0.5) if decay != start]
    assert settings == [*first, *decays, (1e-2, 0.5, 2), (1e-2, 0.5, 4)]
    assert best(found.tried["mha"], losses["mha"]) == Trial(learning_rate=1e-2, weight_decay=0.5, warmup=4)
    assert len(found.tried["mqa"]) == len(found.tried["mha"])


@pytest.mark.parametrize("seed", range(8))
def test_all_arms_try_equally_many(seed: int) -> None:
    rng = random.Random(seed)

    def loss(trial: Trial) -> float:
        return math.inf if rng.random() < 0.3 else rng.random()

    tuning = Tuning(RATES, weight_decays=(0.0, 0.3), warmups=(1,), rounds=4)
    found, _ = play(tuned_study(tuning), {"mha": loss, "mqa": loss})
    assert len(set(found.tried["mha"])) == len(set(found.tried["mqa"])) == len(found.tried["mqa"])


def test_a_failure_is_infinitely_bad() -> None:
    """High rates diverge: the grid grows downwards; where all fail too, and nothing is called a loss."""
    found, losses = play(tuned_study(), {"mha": lambda t: math.inf if t.learning_rate > 2e-3 else 1.0, "mqa": at(1e-2)})
    assert rates(found, "mha")[3] == 1e-4
    assert best(found.tried["mha"], losses["mha"]).learning_rate <= 1e-3
    found, losses = play(tuned_study(), {"mha": lambda t: math.inf, "mqa": at(1e-2)})
    assert rates(found, "mha")[3:] == [1e-4, 1e-5]
    record = tuned(found.tried["mha"], losses["mha"], True)
    assert record.is_at_edge and {trial.loss for trial in record.trials} == {None}


def test_a_kill_changes_no_choice() -> None:
    """Whatever subset of the trials finished first, the search ends with the same trials and the same choice."""
    loss = {"mha": at(1e-6), "mqa": at(2e-2)}
    study = tuned_study(Tuning(RATES, weight_decays=(0.0, 0.3)))
    whole, losses = play(study, loss)
    rng = random.Random(0)
    for _ in range(20):
        kept = {name: {t: x for t, x in known.items() if rng.random() < 0.5} for name, known in losses.items()}
        again, found = play(study, loss, kept)
        assert again == whole and found == losses


def test_what_can_not_be_tuned_is_refused() -> None:
    for wrong in ({"rates": ()}, {"rates": (0.1, 0.1)}, {"rates": (-0.1, 0.1)}, {"rates": (0.1,), "seeds": ()}):
        with pytest.raises(ConfigError, match="tuning needs"):
            Tuning(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="leave tuning out"):
        tuned_study(endpoint=RateSensitivity(), learning_rates=(0.1, 0.2))


# ── a study that tunes ───────────────────────────────────────────────────────────────────────────────────────────────


def small_tuned(**changes: Any) -> Study:
    options: dict[str, Any] = {"fresh_seeds": 0, "probe": None} | changes
    return tuned_study(Tuning((1e-4, 1e-2), rounds=1), **options)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tuned")
    status, results = run(small_tuned(), folder)
    assert status == "finished"
    return folder, results


def recorded(folder: Path) -> StudyRecord:
    return records.read(StudyRecord, RunFolder(folder), "study.json")


def test_the_verdict_is_at_each_arms_own_best(done: tuple[Path, dict[str, Any]]) -> None:
    """Tuning runs have their own seed and their own text, and no measurements; what was spent is recorded."""
    folder, results = done
    study = recorded(folder)
    trials = [r for r in study.runs if r.purpose == "tuning"]
    assert {r.seed for r in trials} == {1000} and len(trials) == 6
    for arm in study.arms:
        assert arm.tuned is not None and arm.tuned.best is not None and arm.tuned.best.loss is not None
        assert arm.tuned.runs == len(arm.tuned.trials) == 3 and arm.tuned.seconds > 0
        rates = {r.learning_rate for r in study.runs if r.arm == arm.name and r.purpose == "arm"}
        assert rates == {arm.tuned.best.learning_rate}
        assert arm.tuned.best.loss == min(trial.loss for trial in arm.tuned.trials if trial.loss is not None)
    shown = records.from_json(StudyResults, results, "results.json")
    assert [arm.tuned for arm in shown.arms] == [arm.tuned for arm in study.arms]
    assert shown.aa is not None and shown.aa.equal and all(arm.n == 2 for arm in shown.arms)
    for trial in trials:
        place = RunFolder(folder / trial.folder)
        assert place.read_json("config.json")["resolved"]["data"]["held_out"] == "tuning"
        assert not place.exists("measurements.json")


def test_more_seeds_do_not_tune_again(
    done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor does other code: the choice is kept, and the record of its trials. Another grid tunes again."""
    folder, _ = done
    before, place = recorded(folder), RunFolder(folder)
    with monkeypatch.context() as patch:
        patch.setattr("gpt_jax.runs.address.code_hashes", lambda *roots: {"gpt_jax.model.gpt": "other"})
        plan = stages.advanced(make_plan(small_tuned(seeds=(0, 1, 2))), place)
    assert not plan.is_tuning and not plan.trials and plan.tuned == {arm.name: arm.tuned for arm in before.arms}
    same = stages.advanced(make_plan(small_tuned(seeds=(0, 1, 2))), place)
    old = {r.folder.removeprefix("runs/") for r in before.runs if r.purpose == "arm"}
    assert old <= {r.folder for r in same.runs}, "what ran is used again"
    assert stages.advanced(make_plan(tuned_study(Tuning((1e-4, 1e-3), rounds=1))), place).is_tuning
    stages.rewrite_record(same, place)
    after = recorded(folder)
    assert [r for r in after.runs if r.purpose == "tuning"] == [r for r in before.runs if r.purpose == "tuning"]
    stages.rewrite_record(stages.advanced(make_plan(small_tuned()), place), place)


def test_the_choice_is_rebuilt_from_what_finished(done: tuple[Path, dict[str, Any]]) -> None:
    """Without the record, as after a kill before it was written."""
    folder, _ = done
    place = RunFolder(folder)
    kept = place.read_text("study.json")
    before = recorded(folder)
    try:
        place.file("study.json").unlink()
        plan = stages.advanced(make_plan(small_tuned()), place)
    finally:
        place.write_text("study.json", kept)
    assert plan.tuned == {arm.name: arm.tuned for arm in before.arms} and not plan.is_tuning
    assert {f"runs/{r.folder}" for r in plan.runs} == {r.folder for r in before.runs}


def test_jobs_take_slices_of_a_stage(done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(make_plan(small_tuned()), done[0], Console(quiet=True), PROGRAMS)
    ran: list[Any] = []
    monkeypatch.setattr(Runner, "_run", lambda self, mine, stage: ran.append((mine, stage)) or "finished")
    for i in range(2):
        assert runner.run_slice((i, 2)) == "finished"
    groups = runner.plan.groups
    assert ran == [(groups[0::2], "verdict "), (groups[1::2], "verdict ")] and len(groups) == 5


# ── shards ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("together", [1, 2])
def test_shards_go_by_seed(together: int) -> None:
    """Every shard has whole pairs and its own copy; tuned arms are whole on one shard; all shards are all runs."""
    study = small_study(seeds=tuple(range(5)), fresh_seeds=2)
    plan = make_plan(study, together, shards=2)
    parts = [shard_of(plan.groups, (i, 2)) for i in range(2)]
    assert sorted(g[0].folder for part in parts for g in part) == sorted(g[0].folder for g in plan.groups)
    for part in parts:
        by_arm = {arm: {r.seed for g in part for r in g if (r.arm, r.purpose) == (arm, "arm")} for arm in plan.arms}
        assert by_arm["mha"] == by_arm["mqa"] != set()
        copies = {r.seed for g in part for r in g if r.purpose == "aa"}
        assert len(copies) == together and copies <= by_arm["mha"]
    trials = make_plan(tuned_study(Tuning(RATES, seeds=(1000, 1001))), together, shards=2).trials
    arms = [{r.arm for g in shard_of(trials, (i, 2)) for r in g} for i in range(2)]
    assert arms == [{"mha"}, {"mqa"}]


def test_a_shard_waits_for_the_trials_of_others(tmp_path: Path) -> None:
    """Then both choose alike; each checks its own determinism."""
    study = small_tuned()

    def start(i: int) -> str:
        plan = make_plan(study, shards=2)
        write_plan(plan, tmp_path, "python -m experiments.ablate", asked(plan), False, shard=(i, 2))
        return Runner(plan, tmp_path, Console(quiet=True), PROGRAMS).run((i, 2))

    statuses = [start(0), start(1), start(0), start(1), start(0), start(1)]
    assert statuses[0] == "waiting" and statuses[-2:] == ["finished", "finished"]
    assert collect(tmp_path)["aa"] == {"equal": True, "pairs": 2}


def test_runs_of_other_shards_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard on another kind of device gives its own runs other addresses, and no one else's."""
    study = small_study()
    first = make_plan(study, shards=2)
    write_plan(first, tmp_path, "command", asked(first), False, shard=(0, 2))
    monkeypatch.setattr("gpt_jax.runs.address._devices", lambda: {"kind": "another", "count": 1})
    other = make_plan(study, shards=2)
    write_plan(other, tmp_path, "command", asked(other), False, shard=(1, 2))
    folders = {r.folder.removeprefix("runs/") for r in recorded(tmp_path).runs}
    expected = [r.folder for p, i in ((first, 0), (other, 1)) for g in shard_of(p.groups, (i, 2)) for r in g]
    assert folders == set(expected) and not {r.folder for r in first.runs} & {r.folder for r in other.runs}


def test_a_pair_is_done_again_as_a_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another device, library, numeric setting or code gives the baseline and its rivals other addresses alike; a shard
    whose seed has runs of another device is refused."""
    study = small_study(fresh_seeds=0, aa=False)
    before = make_plan(study)
    for part, values in (("_devices", {"kind": "x"}), ("versions", {"jax": "9"}), ("code_hashes", {"a": "b"})):
        with monkeypatch.context() as patch:
            patch.setattr(f"gpt_jax.runs.address.{part}", lambda *_, v=values: v)
            after = make_plan(study)
        assert not {r.folder for r in before.runs} & {r.folder for r in after.runs}, part
    ended = before.runs[0]
    place = RunFolder(tmp_path / "runs" / ended.folder)
    place.make()
    outcome = {"status": "finished", "wall_seconds": 1.0, "address": ended.address.parts}
    place.write_json("outcome.json", outcome)
    check_shard(before.runs, RunFolder(tmp_path))
    check_shard(after.runs, RunFolder(tmp_path))  # other code is no other host
    monkeypatch.setattr("gpt_jax.runs.address._devices", lambda: {"kind": "x"})
    with pytest.raises(ConfigError, match="a pair must not straddle two"):
        check_shard(make_plan(study).runs, RunFolder(tmp_path))
