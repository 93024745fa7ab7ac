"""A small study from its first run to its results: paired, resumable, honest about what went wrong."""

import copy
import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from gpt_jax.ablation import addresses, grouping, records
from gpt_jax.ablation import plan as plans
from gpt_jax.ablation import runner as runners
from gpt_jax.ablation.combine import vary
from gpt_jax.ablation.endpoint import RateSensitivity
from gpt_jax.ablation.findings import StudyResults
from gpt_jax.ablation.grouping import choose, time_both
from gpt_jax.ablation.measure import Measure
from gpt_jax.ablation.plan import make_plan
from gpt_jax.ablation.planned import PlannedRun
from gpt_jax.ablation.redone import redone
from gpt_jax.ablation.results import collect as collect_results
from gpt_jax.ablation.results import write_results
from gpt_jax.ablation.runner import Runner, write_plan
from gpt_jax.ablation.schema import Grouping, RunOutcome
from gpt_jax.ablation.show import show_plan
from gpt_jax.ablation.study import Arm, Probe, Study
from gpt_jax.config import Checkpoint, Copy, Evaluation, Suites
from gpt_jax.config.conversion import config_hash
from gpt_jax.config.errors import ConfigError, UserError
from gpt_jax.data import open_data
from gpt_jax.runs import metrics
from gpt_jax.runs.checkpoint import CheckpointError, Checkpoints
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.load import load_run
from gpt_jax.runs.train import train
from gpt_jax.training.programs import Programs
from tests.tiny import PROGRAMS, tiny_config

KV = "model.attention.kv_heads"
MEASURE = Measure()  # what the studies of this file compile alike


def small_study(**changes: Any) -> Study:
    base = tiny_config(evaluation=Evaluation(every=3, batch_size=8), checkpoint=Checkpoint(every=3))
    block = dataclasses.replace(
        base.model.blocks[0], attention=dataclasses.replace(base.model.blocks[0].attention, kv_heads=2), dropout=0.1
    )
    base = dataclasses.replace(base, model=dataclasses.replace(base.model, blocks=(block,) * 2))
    probe = Probe("length", {3: Copy(symbols=8, length=3), 4: Copy(symbols=8, length=4)})
    options = {"seeds": (0, 1), "fresh_seeds": 2, "probe": probe} | changes
    return Study("Fewer heads?", base, vary(KV, mha=2, mqa=1), "mha", (KV,), 0.01, **options)


def with_base(**changes: Any) -> Study:
    study = small_study()
    return dataclasses.replace(study, base=dataclasses.replace(study.base, **changes))


def asked(plan: plans.StudyPlan, count: int = 1) -> Grouping:
    return Grouping(count, "as asked", config_hash(plan.arms[plan.study.baseline].config))


def run(study: Study, folder: Path, shard: tuple[int, int] = (0, 1), together: int = 1) -> tuple[str, dict[str, Any]]:
    plan = make_plan(study, together)
    write_plan(plan, folder, "python -m experiments.ablate", asked(plan, together), forced=False)
    status = Runner(plan, folder, Console(quiet=True), PROGRAMS, MEASURE).run(shard)
    write_results(folder)
    return status, json.loads((folder / "results.json").read_text())


def collect(folder: Path) -> dict[str, Any]:
    """The results as JSON holds them."""
    return json.loads(json.dumps(dataclasses.asdict(collect_results(folder))))


def without_clock(value: Any) -> Any:
    """Results without what depends on the clock or the machine."""
    if isinstance(value, dict):
        return {
            k: without_clock(v)
            for k, v in value.items()
            if not (k.endswith("_seconds") or "measured_" in k or k == "log")
        }
    return [without_clock(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("study")
    status, results = run(small_study(), folder)
    assert status == "finished"
    return folder, results


def test_results_keep_the_contract(done: tuple[Path, dict[str, Any]]) -> None:
    folder, results = done
    assert records.read(StudyResults, RunFolder(folder), "results.json") == collect_results(folder)
    assert results["metric"] == "final validation loss" and results["setup"]["steps"] == 6 and results["jobs"] == 1
    assert len(results["devices"]) == 1 and jax.devices()[0].device_kind in results["devices"][0]
    for arm in results["arms"]:
        assert arm["n"] == 2 and [r["status"] for r in arm["runs"]] == ["finished"] * 2
        assert arm["mean"] == pytest.approx(np.mean(list(arm["losses"].values())))
        assert [x for x, _ in arm["accuracy_by"]["points"]] == [3, 4]
        assert arm["curves"]["train"][0][0] == 1 and [p[0] for p in arm["curves"]["validation"]] == [3, 6]
        assert 0 < arm["diagnostics"]["attention_entropy"] < np.log(8)
    mha, mqa = results["arms"]
    assert mha["versus_baseline"] is None and mqa["changes"] == {KV: 1}
    assert mqa["versus_baseline"]["mean"] == pytest.approx(mqa["mean"] - mha["mean"])
    assert mha["kv_bytes_per_token"] == 2 * mqa["kv_bytes_per_token"]
    assert results["aa"] == {"equal": True, "pairs": 1} and results["noise"]["n"] == 2
    assert "mqa is undecided" in results["verdict"]
    json.dumps(results, allow_nan=False)


def test_scores_of_heads_are_those_after_the_last_step(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """By score and seed, of arms whose runs record them; scores of single layers and of earlier steps stay there."""
    folder = shutil.copytree(done[0], tmp_path / "study")
    assert all(arm["inside"] == {} for arm in done[1]["arms"])
    study = json.loads((folder / "study.json").read_text())
    for arm in study["arms"]:
        arm["config"]["diagnostics"]["every"] = 3
    (folder / "study.json").write_text(json.dumps(study))
    for planned in study["runs"]:
        with (folder / planned["folder"] / "metrics.jsonl").open("a") as file:
            for step in (3, 6):
                scores = {"entropy": step + planned["seed"], "sink": None, "blocks/0/attention/entropy": 1.0}
                place = {"step": step, "split": "diagnostics", "rows": 4, "tokens": 128}
                file.write(json.dumps(place | scores) + "\n")
    assert [arm["inside"] for arm in collect(folder)["arms"]] == [{"entropy": {"0": 6.0, "1": 7.0}}] * 2
    study["arms"][1]["config"]["diagnostics"]["tokens"] = 64  # its runs have scores of other tokens, from before
    (folder / "study.json").write_text(json.dumps(study))
    assert [len(arm["inside"]) for arm in collect(folder)["arms"]] == [1, 0]


def test_suites_that_the_arms_cannot_take_are_refused_when_the_study_is_planned() -> None:
    with pytest.raises(UserError, match='"recall", which is no suite of a run on Copy: choose among copy'):
        make_plan(with_base(suites=Suites("recall")))


def test_answers_over_training_are_means_over_the_seeds(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Of steps that all runs of an arm recorded, and of as many questions as the arm asks."""
    folder = shutil.copytree(done[0], tmp_path / "study")
    assert all(arm["suites"] == {} for arm in done[1]["arms"])
    study = json.loads((folder / "study.json").read_text())
    for arm, questions in zip(study["arms"], (8, 9), strict=True):
        arm["config"]["suites"] = {"names": "recall", "every": 3, "questions": questions}
    (folder / "study.json").write_text(json.dumps(study))
    for planned in study["runs"]:
        with (folder / planned["folder"] / "metrics.jsonl").open("a") as file:
            for step in (3, 6, 7 + planned["seed"]):
                found = {"recall/accuracy": step / 10 + planned["seed"] / 100, "recall/low": 0.0, "recall/chance": 0.1}
                file.write(json.dumps({"step": step, "split": "suite", "questions": 8} | found) + "\n")
    asked, other = (arm["suites"] for arm in collect(folder)["arms"])
    assert other == {} and asked.keys() == {"recall/accuracy", "recall/chance"}
    assert np.allclose(asked["recall/accuracy"], [(3, 0.305, 0.3, 0.31), (6, 0.605, 0.6, 0.61)])


def test_runs_are_those_that_train_makes(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Sharing programs, arms in turn and measuring in between change no bit of a run, and its folder is ordinary."""
    folder, results = done
    arm = next(a for a in results["arms"] if a["name"] == "mqa")
    config = dataclasses.replace(small_study().configs()["mqa"], seed=1)
    train(config, tmp_path, console=Console(quiet=True))

    def recorded(place: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in metrics.read(RunFolder(place))]

    place = folder / arm["runs"][1]["folder"]
    assert recorded(place) == recorded(tmp_path)
    model, params, tokenizer = load_run(place)
    assert model.config.blocks[0].attention.kv_heads == 1 and tokenizer.vocab_size == 9


def test_what_is_measured_is_what_was_evaluated(done: tuple[Path, dict[str, Any]]) -> None:
    """The mean of the loss by position, weighted by targets, is the validation loss; so is the probe at training's."""
    folder, results = done
    for arm in results["arms"]:
        by_position = [loss for _, loss in arm["loss_by_position"]]
        assert len(by_position) == 4 and np.mean(by_position) == pytest.approx(arm["mean"], rel=1e-5)


def test_arms_of_a_seed_see_the_same_data() -> None:
    plan = make_plan(small_study())
    for seed in (0, 1):
        of_seed = [r.resolved for r in plan.runs if r.seed == seed]
        batches = [open_data(c.data, c.model.context_length, c.data_seed).batch(3, 8).tokens for c in of_seed]
        assert len(batches) >= 2 and all((batch == batches[0]).all() for batch in batches)


def test_what_is_done_is_skipped(done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, results = done
    monkeypatch.setattr(runners, "train", None)
    status, again = run(small_study(), folder)
    assert status == "finished" and without_clock(again) == without_clock(results)


def test_more_seeds_reuse_those_that_ran(done: tuple[Path, dict[str, Any]]) -> None:
    names = {r.folder for r in make_plan(small_study()).runs}
    more = [r.folder for r in make_plan(small_study(seeds=(0, 1, 2))).runs]
    assert names <= set(more) | {r.folder for r in make_plan(small_study()).runs if r.purpose == "noise"}
    assert sum(name in names for name in more) >= 5


def test_a_run_is_named_by_what_decides_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def folders(study: Study) -> set[str]:
        return {r.folder for r in make_plan(study).runs}

    def with_base(**changes: Any) -> Study:
        return dataclasses.replace(study, base=dataclasses.replace(study.base, **changes))

    study = small_study()
    names = folders(study)
    assert len(names) == len({name.rsplit("-", 1)[1] for name in names}) == 7  # the copy's hash is its own too
    assert not names & folders(with_base(train=dataclasses.replace(study.base.train, steps=7)))
    assert not names & folders(with_base(data=dataclasses.replace(study.base.data, validation_rows=11)))
    assert names == folders(dataclasses.replace(study, question="Another?", smallest_difference=0.5))
    monkeypatch.setattr("gpt_jax.runs.address.code_hashes", lambda *roots: {"gpt_jax.model.gpt": "other"})
    assert not names & folders(study)


def test_other_measurements_cost_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another extrapolation, then another code that measures: each run is measured again from its checkpoint, and no
    run trains; the lines for people say so. Another matmul precision trains all again.
    """
    small = {"fresh_seeds": 0, "seeds": (0,), "aa": False}
    first = run(small_study(**small), tmp_path)[1]
    counted: list[str] = []
    measured = runners.Runner._measured

    def count(self: Runner, planned: PlannedRun) -> Any:
        counted.append(planned.arm)
        return measured(self, planned)

    monkeypatch.setattr(runners.Runner, "_measured", count)
    monkeypatch.setattr(runners, "train", None)  # whoever trains fails
    other = Probe("longer", {4: Copy(symbols=8, length=4), 6: Copy(symbols=8, length=6)})
    study = small_study(**small | {"probe": other})
    assert redone(make_plan(study).runs, RunFolder(tmp_path)) == [
        "2 finished runs are measured again: what is measured, or the code that measures, changed"
    ]
    status, again = run(study, tmp_path)
    assert status == "finished" and counted == ["mha", "mqa"]
    for before, after in zip(first["arms"], again["arms"], strict=True):
        assert before["runs"] == after["runs"] and before["losses"] == after["losses"]
        assert [x for x, _ in after["accuracy_by"]["points"]] == [4, 6]
    assert run(study, tmp_path)[0] == "finished" and len(counted) == 2, "measured once"
    hashes = addresses.code_hashes
    other_code = {addresses.MEASURING: "other"}
    monkeypatch.setattr(
        addresses,
        "code_hashes",
        lambda *roots: hashes(*roots) | (other_code if roots == (addresses.MEASURING,) else {}),
    )
    assert run(study, tmp_path)[0] == "finished" and counted == ["mha", "mqa"] * 2
    with jax.default_matmul_precision("highest"):
        (line,) = redone(make_plan(study).runs, RunFolder(tmp_path))
    assert line == "2 finished runs are trained again, since this changed: default matmul precision: None → 'highest'"


def test_a_study_from_before_addresses_opens(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Without `together` in study.json and without addresses beside the runs it reports; its runs are other runs."""
    folder, results = done
    shutil.copytree(folder, tmp_path / "old")
    study = json.loads((tmp_path / "old" / "study.json").read_text())
    del study["together"]
    (tmp_path / "old" / "study.json").write_text(json.dumps(study))
    for path in (tmp_path / "old" / "runs").glob("*/*.json"):
        if path.name in ("outcome.json", "measurements.json"):
            record = json.loads(path.read_text())
            del record["address"]
            path.write_text(json.dumps(record))
    found = collect(tmp_path / "old")
    assert found["repeat"].pop("together") is None
    assert found.pop("devices") == []
    assert found["repeat"] == {k: v for k, v in results["repeat"].items() if k != "together"}
    for name in found.keys() - {"repeat", "log"}:
        assert found[name] == results[name], name
    with jax.default_matmul_precision("highest"):
        lines = redone(make_plan(small_study()).runs, RunFolder(tmp_path / "old"))
    assert lines == ["7 finished runs are trained again, since this changed: their addresses were not recorded"]


def test_shards_merge(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, whole = done
    first = run(small_study(), tmp_path, (0, 2))[1]
    assert first["verdict"].startswith("So far (4 of 7 runs are done)")
    assert {r["status"] for arm in first["arms"] for r in arm["runs"]} == {"finished", "missing"}
    assert without_clock(run(small_study(), tmp_path, (1, 2))[1]) == without_clock(whole)


def test_an_interrupted_study_goes_on(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = done
    for stop in (2, 5):
        calls = iter(range(10**6))
        with monkeypatch.context() as patch:
            patch.setattr(Interrupts, "requested", lambda self, step, c=calls, n=stop: next(c) == n)
            status, partly = run(small_study(), tmp_path)
            assert status == "interrupted"
    assert any(r["status"] == "interrupted" for arm in partly["arms"] for r in arm["runs"])
    status, results = run(small_study(), tmp_path)
    assert status == "finished" and without_clock(results) == without_clock(whole)


def test_divergence_stays_in_the_table(tmp_path: Path) -> None:
    """At 1e30 the parameters overflow: the run is recorded, not repeated, and counts with the loss it began with."""
    sweep: dict[str, Any] = {"learning_rates": (1e-2, 1e30), "endpoint": RateSensitivity()}
    study = small_study(**sweep, fresh_seeds=0, seeds=(0,), aa=False, probe=None)
    base = dataclasses.replace(study.base, train=dataclasses.replace(study.base.train, steps=40, max_skipped=2))
    status, results = run(dataclasses.replace(study, base=base), tmp_path)
    assert status == "finished"
    for arm in results["arms"]:
        assert [r["status"] for r in arm["runs"]] == ["finished", "diverged"]
        assert arm["learning_rate"] == 1e-2 and arm["by_learning_rate"]["1e+30"] == [None]
        first, loss = arm["curves"]["train"][0][1], arm["losses"]["0"]
        assert arm["values"]["0"] == pytest.approx((first - loss) / 2)
        assert arm["mean"] == arm["learning_rate_sensitivity"] == arm["values"]["0"]
    assert len(results["repeat"]["failures"]) == 2 and "diverged" in results["repeat"]["failures"][0]


def test_progress_shows_no_mean_of_survivors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends above the study's `fails_above` failed; its arm's line counts it from then on."""

    def end(self: Runner, group: tuple[PlannedRun, ...]) -> bool:
        for planned in group:
            place = self.folder(planned)
            place.make()
            loss = 3.0 if (planned.arm, planned.seed) == ("mqa", 1) else 2.0
            place.write_text("metrics.jsonl", json.dumps({"step": 6, "split": "validation", "loss": loss}) + "\n")
            records.write(RunOutcome("finished", 1.0), place, "outcome.json")
        return True

    monkeypatch.setattr(Runner, "_finish", end)
    text = io.StringIO()
    plan = make_plan(small_study(fails_above=2.5, fresh_seeds=0, aa=False, seeds=(0, 1, 2)))
    assert Runner(plan, tmp_path, Console(file=text, width=300), Programs()).run() == "finished"
    lines = text.getvalue().splitlines()
    assert "mqa 2.0000" in lines[1] and "mqa, seed 1, learning rate 0.01: failed in" in lines[3]
    assert "mha 2.0000  mqa 1 of 2 failed" in lines[3] and "mqa 1 of 3 failed" in lines[5]


def test_a_failure_costs_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = small_study(fresh_seeds=0, seeds=(0,), aa=False, probe=None)

    def fail(config: Any, *args: Any, **options: Any) -> Any:
        if config.model.blocks[0].attention.kv_heads == 1:
            raise RuntimeError("out of memory")
        return train(config, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(runners, "train", fail)
        status, results = run(study, tmp_path)
    assert status == "failed" and results["repeat"]["failures"] == [
        "mqa, seed 0, learning rate 0.01: RuntimeError: out of memory"
    ]
    assert [r["status"] for arm in results["arms"] for r in arm["runs"]] == ["finished", "missing"]
    status, results = run(study, tmp_path)
    assert status == "finished" and results["repeat"]["failures"] == []


def test_a_full_disk_ends_the_study_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every further run would meet it, and its traceback has no place to go."""
    tried = []

    def fail(self: Runner, group: tuple[PlannedRun, ...]) -> bool:
        tried.append(group)
        raise OSError(28, "No space left on device", str(tmp_path / "metrics.jsonl"))

    monkeypatch.setattr(Runner, "_finish", fail)
    plan = make_plan(small_study(fresh_seeds=0, aa=False, seeds=(0, 1, 2)))
    with pytest.raises(OSError, match="No space left on device"):
        Runner(plan, tmp_path, Console(quiet=True), Programs()).run()
    assert len(tried) == 1 and not list(tmp_path.rglob("failure*"))


def test_a_changed_bit_fails_the_copy(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The A/A comparison sees one last digit of one loss."""
    folder, _ = done
    shutil.copytree(folder, tmp_path / "copy")
    aa = next((tmp_path / "copy" / "runs").glob("A-A-*")) / "metrics.jsonl"
    lines = aa.read_text().splitlines()
    record = json.loads(lines[2])
    aa.write_text("\n".join([*lines[:2], json.dumps(record | {"loss": np.nextafter(record["loss"], 9)}), *lines[3:]]))
    found = collect(tmp_path / "copy")
    assert found["aa"] == {"equal": False, "pairs": 1}
    assert any("determinism check failed" in mark for mark in found["marks"])


def test_other_parameters_at_the_end_fail_the_copy(
    done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where every loss that was recorded is the same; a checkpoint that is gone is no proof of anything."""
    saved = Checkpoints.saved_fingerprints

    def other(self: Checkpoints, step: int) -> Any:
        found = saved(self, step)
        assert set(found["params"])
        return found | ({"params": {}} if "A-A-" in self.path(step) else {})

    monkeypatch.setattr(Checkpoints, "saved_fingerprints", other)
    assert collect(done[0])["aa"] == {"equal": False, "pairs": 1}
    monkeypatch.setattr(Checkpoints, "saved_fingerprints", lambda self, step: saved(self, step + 1))
    with pytest.raises(CheckpointError, match="has no checkpoint of step"):
        collect(done[0])


def test_an_unmatched_arm_is_not_ranked(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    plan = make_plan(small_study(match="kv_bytes"))
    text = io.StringIO()
    show_plan(plan, Console(file=text, width=200))
    assert "mqa" in text.getvalue() and "not ranked: its kv_bytes are 0.500 × the baseline's" in text.getvalue()
    for forced, verdict in ((False, "not ranked"), (True, "undecided")):
        write_plan(plan, done[0], "command", asked(plan), forced)
        mqa = next(a for a in collect(done[0])["arms"] if a["name"] == "mqa")
        assert mqa["versus_baseline"]["verdict"] == verdict
        assert forced or mqa["versus_baseline"]["reason"] == "its kv_bytes are 0.500 × the baseline’s"
    plan = make_plan(small_study())
    write_plan(plan, done[0], "python -m experiments.ablate", asked(plan), False)


def test_what_can_not_be_answered_is_refused() -> None:
    wide = Probe("symbols", {40: Copy(symbols=40, length=4)})
    with pytest.raises(ConfigError, match="41 symbols"):
        make_plan(small_study(probe=wide))
    twice = (Arm("mha"), Arm("same"))
    with pytest.raises(ConfigError, match="are the same"):
        make_plan(dataclasses.replace(small_study(), arms=twice, baseline="mha"))


def test_a_folder_without_a_study_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no study"):
        collect(tmp_path)


def test_clocks_are_left_out_by_name() -> None:
    """What the comparisons above leave out, and nothing else."""
    value = {"wall_seconds": 1, "measured_x": 2, "mean": 3, "arms": [{"measured_y": 1, "n": 2}]}
    assert without_clock(copy.deepcopy(value)) == {"mean": 3, "arms": [{"n": 2}]}


# ── several seeds in one program ─────────────────────────────────────────────────────────────────────────────────────


def test_seeds_that_train_together_give_the_same_study(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, alone = done
    status, results = run(small_study(), tmp_path, together=2)
    assert status == "finished" and results["aa"] == {"equal": True, "pairs": 2} and results["noise"]["n"] == 2
    for one, both in zip(alone["arms"], results["arms"], strict=True):
        assert one["losses"].keys() == both["losses"].keys()
        for seed, loss in one["losses"].items():
            assert both["losses"][seed] == pytest.approx(loss, rel=1e-5)
        assert both["diagnostics"]["attention_entropy"] == pytest.approx(
            one["diagnostics"]["attention_entropy"], rel=1e-4
        )
    folders = [r["folder"] for results in (alone, results) for arm in results["arms"] for r in arm["runs"]]
    assert len(set(folders)) == 8, "runs that train otherwise are other runs"
    assert {r.seed for r in make_plan(small_study(), 2).runs if r.purpose == "aa"} == {0, 1}


def test_what_a_study_began_with_stays(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = done
    plan, programs = make_plan(small_study()), Programs()
    assert choose(plan, folder, None, False, programs) == asked(plan)
    with pytest.raises(ConfigError, match="began with --together=1"):
        choose(plan, folder, 2, False, programs)
    assert choose(plan, tmp_path, 2, False, programs).reason == "2 in one program, as asked"
    assert choose(plan, tmp_path, 1, False, programs).reason == "one after the other, as asked"
    assert choose(plan, tmp_path, None, True, programs).count == 1, "parts of a study on several machines agree"
    write_plan(plan, tmp_path, "command", asked(plan, 2), False)
    assert choose(plan, tmp_path, None, True, programs) == asked(plan, 2)
    other = make_plan(with_base(prompt="another study"))
    assert choose(other, tmp_path, 1, True, programs).count == 1, "what another study chose here does not bind"


def test_what_can_not_train_together_is_refused(tmp_path: Path) -> None:
    study = with_base(train=dataclasses.replace(small_study().base.train, parallel="pmap"))
    with pytest.raises(ConfigError, match="leave --together out"):
        choose(make_plan(study), tmp_path, 2, False, Programs())
    assert choose(make_plan(study), tmp_path, None, False, Programs()).count == 1


@pytest.mark.parametrize(
    ("one", "both", "count"), [((1.0, 1.0), (1.5, 1.0), 2), ((1.0, 1.0), (2.0, 1.9), 1), ((9.0, 0.5), None, 1)]
)
def test_what_takes_less_time_is_chosen(
    one: tuple[float, float], both: tuple[float, float] | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(compilation, step) in seconds each way; where all steps take less than a compilation the second isn't tried."""
    found = iter([one, both])
    monkeypatch.setattr(grouping, "_seconds", lambda step, state: next(found))
    config = make_plan(small_study()).runs[0].resolved
    chosen = time_both(config, 2, Programs(), "")
    assert chosen.count == count
    assert chosen.measured_one_by_one_seconds == one[0] + 2 * config.train.steps * one[1]
    assert chosen.measured_together_seconds == (None if both is None else both[0] + config.train.steps * both[1])


def test_what_does_not_fit_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(grouping, "_seconds", lambda step, state: (0.1, 1.0))
    monkeypatch.setattr(grouping, "stack", full)
    chosen = time_both(make_plan(small_study()).runs[0].resolved, 2, Programs(), "")
    assert chosen.count == 1 and "do not fit" in chosen.reason


def test_both_ways_are_measured_by_steps_that_run() -> None:
    config = make_plan(small_study()).runs[0].resolved
    long = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=10**6))
    chosen = time_both(long, 2, Programs(), "")
    assert chosen.measured_one_by_one_seconds and chosen.measured_together_seconds


def test_memory_is_that_of_the_step(done: tuple[Path, dict[str, Any]]) -> None:
    """At least parameters and two moments of Adam; what an arm has less of, it takes less for."""
    _, results = done
    mha, mqa = results["arms"]
    assert mha["measured_peak_bytes"] > 3 * 4 * mha["parameters"]
    assert mqa["measured_peak_bytes"] < mha["measured_peak_bytes"]
