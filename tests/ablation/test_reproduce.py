"""A claim is run again, and one sentence says whether it came out the same."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpt_jax.ablation import records
from gpt_jax.ablation.claim import CLAIM, AddressedRun, ArmOutcome, Claim, ClaimOutcome, open_claim, read_claim
from gpt_jax.ablation.claim import claimed as in_plain_form
from gpt_jax.ablation.combine import vary
from gpt_jax.ablation.endpoint import Suite, ToTarget
from gpt_jax.ablation.plan import StudyPlan, make_plan
from gpt_jax.ablation.reproduce import compare_outcomes, plan_again, study_again
from gpt_jax.ablation.results import write_results
from gpt_jax.ablation.runner import Runner, write_plan
from gpt_jax.ablation.schema import Grouping
from gpt_jax.ablation.study import Study
from gpt_jax.config import Bytes, Text
from gpt_jax.config.errors import ConfigError, MissingFile
from gpt_jax.runs.folder import RunFolder
from tests.ablation.test_claim import KV, small_study, start
from tests.tiny import PROGRAMS, tiny_config

ROOT = Path(__file__).parents[2]


# ── is it the same? ──────────────────────────────────────────────────────────────────────────────────────────────────


def outcome(mha: dict[str, float | None], mqa: dict[str, float | None], **changes: Any) -> ClaimOutcome:
    """An outcome whose interval of the difference is 0.01 to 0.03."""
    arms = {
        "mha": ArmOutcome(values=mha),
        "mqa": ArmOutcome(values=mqa, difference=0.02, interval=(0.01, 0.03), verdict="worse"),
    }
    runs = {
        f"runs/{name}-{seed}": AddressedRun(arm=name, seed=int(seed), learning_rate=0.01, parts={})
        for name, arm in arms.items()
        for seed in arm.values
    }
    options = {"shared": {"devices": {"kind": "cpu"}}, "verdict": "MQA is worse."} | changes
    return ClaimOutcome(time="", arms=arms, runs=runs, versions={}, devices=("cpu",), **options)


def claim_of(found: ClaimOutcome | None, **changes: Any) -> Claim:
    study = in_plain_form(small_study(**changes), None)
    frozen = records.from_json(
        Claim,
        {
            "frozen": {
                "study": dataclasses.asdict(study), "time": "", "code": "", "versions": {}, "devices": [],
            },
            "frozen_hash": "",
        },
        CLAIM,
    )  # fmt: skip
    return replace(frozen, outcome=found)


MHA, MQA = {"0": 2.0, "1": 2.1, "2": 2.3}, {"0": 2.01, "1": 2.12, "2": 2.33}
SAME = outcome(MHA, MQA)
ELSEWHERE = {"shared": {"devices": {"kind": "H100"}}}


def test_equal_bits_are_the_same() -> None:
    found = compare_outcomes(claim_of(SAME), SAME)
    assert found.is_same and found.sentence == (
        "It came out the same: all 6 values of 2 arms are bit-equal to the claim’s."
    )
    found = compare_outcomes(claim_of(SAME), outcome(MHA, MQA, **ELSEWHERE))
    assert found.is_same and found.sentence.endswith("This differs: device kind: 'cpu' → 'H100'.")


def test_one_bit_is_not_the_same_here() -> None:
    found = compare_outcomes(claim_of(SAME), outcome(MHA, MQA | {"1": 2.1200000000000006}))
    assert found.is_same is False and "mqa with seed 1 is 2.1200000000000006 in place of 2.12." in found.sentence
    assert "on the same kind of device, with the same versions and code" in found.sentence


def test_elsewhere_the_intervals_decide() -> None:
    within = outcome(MHA, {"0": 2.018, "1": 2.125, "2": 2.336}, **ELSEWHERE)
    found = compare_outcomes(claim_of(SAME), within)
    assert found.is_same and "all differences from mha lie within the claim’s intervals" in found.sentence
    assert found.sentence.endswith("This differs: device kind: 'cpu' → 'H100'.")
    outside = outcome(MHA, {"0": 2.03, "1": 2.14, "2": 2.35}, **ELSEWHERE)
    found = compare_outcomes(claim_of(SAME), outside)
    assert found.is_same is False
    assert "mqa − mha is +0.0400, outside of the claim’s +0.0100 to +0.0300" in found.sentence


def test_fewer_seeds_are_compared_with_their_own() -> None:
    """Seed 2 differs from the others by more than the interval; that is no sign of another result."""
    found = compare_outcomes(claim_of(SAME), outcome({"2": 2.3}, {"2": 2.331}, **ELSEWHERE))
    assert found.is_same and "values are not bit-equal" in found.sentence
    found = compare_outcomes(claim_of(SAME), outcome({"2": 2.3}, {"2": 2.35}, **ELSEWHERE))
    assert found.is_same is False and "mqa − mha is +0.0400" in found.sentence


def test_a_seed_that_fails_in_one_only_is_named() -> None:
    found = compare_outcomes(claim_of(SAME), outcome(MHA, MQA | {"1": None}, **ELSEWHERE))
    assert found.is_same is False and "mqa failed with seed 1" in found.sentence
    failed = outcome(MHA, MQA | {"1": None})
    assert compare_outcomes(claim_of(failed), failed).is_same, "it fails again"


def test_no_interval_is_no_agreement() -> None:
    one = outcome({"0": 2.0}, {"0": 2.02})
    one = replace(one, arms=one.arms | {"mqa": replace(one.arms["mqa"], interval=None)})
    found = compare_outcomes(claim_of(one), outcome({"0": 2.0}, {"0": 2.021}, **ELSEWHERE))
    assert found.is_same is False and "has no interval in the claim" in found.sentence


def test_seconds_are_never_bit_equal() -> None:
    claim = claim_of(SAME, endpoint=ToTarget(2.0, "seconds"))
    assert compare_outcomes(claim, outcome(MHA, {"0": 2.012, "1": 2.12, "2": 2.33})).is_same


def test_nothing_to_compare_with() -> None:
    found = compare_outcomes(claim_of(None), SAME)
    assert found.is_same is None and found.sentence == "The claim has no outcome to compare with. MQA is worse."


def test_no_common_value_is_no_agreement() -> None:
    """Whether the claim or the new study has none, and of one arm alone."""
    none = outcome(MHA, {})
    for claim, found in ((none, SAME), (SAME, none), (SAME, outcome(MHA, {"7": 2.01}))):
        said = compare_outcomes(claim_of(claim), found)
        assert said.is_same is None and said.sentence.startswith("No value of mqa can be compared")


# ── the study again ──────────────────────────────────────────────────────────────────────────────────────────────────


def trained(plan: StudyPlan, grouping: Grouping, folder: Path) -> Claim:
    """Runs a study as the command does; returns its claim."""
    write_plan(plan, folder, "command", grouping, False)
    assert Runner(plan, folder, Console(file=io.StringIO()), PROGRAMS).run() == "finished"
    write_results(folder)
    return open_claim(folder / CLAIM)


def tiny_study(**changes: Any) -> Study:
    return Study(
        "?", tiny_config(2), vary(KV, mha=2, mqa=1), "mha", (KV,), 0.01, seeds=(0, 1), fresh_seeds=1, **changes
    )


def test_a_study_is_run_again(tmp_path: Path) -> None:
    study = tiny_study(secondary=(Suite("copy", questions=8),))
    claim = trained(make_plan(study), Grouping(1, "", ""), tmp_path / "first")
    assert claim.outcome is not None and set(claim.outcome.arms["mqa"].values) == {"0", "1"}
    moved = tmp_path / "elsewhere.json"
    moved.write_text((tmp_path / "first" / CLAIM).read_text())
    claim = open_claim(moved)
    again = trained(*plan_again(claim, seeds=1), tmp_path / "again")
    assert again.outcome is not None
    found = compare_outcomes(claim, again.outcome)
    assert found.sentence == "It came out the same: all 4 values of 2 arms are bit-equal to the claim’s."
    mqa = again.outcome.arms["mqa"]
    mqa = dataclasses.replace(mqa, answers={"copy at 8": {"0": 0.125}})
    found = compare_outcomes(claim, dataclasses.replace(again.outcome, arms={**again.outcome.arms, "mqa": mqa}))
    assert found.is_same is False and "mqa on copy at 8 with seed 0 is 0.125 in place of" in found.sentence


def test_a_change_after_results_is_run_as_it_was(tmp_path: Path) -> None:
    """The outcome is that of the study as it ran last."""
    place = start(tmp_path, small_study())
    for run in ("mha-0", "mqa-0"):
        place.make(f"runs/{run}")
        place.write_text(f"runs/{run}/outcome.json", '{"status": "finished", "wall_seconds": 1.0}')
    start(tmp_path, small_study(smallest_difference=0.02, seeds=(0, 1, 2, 3)))
    study = study_again(open_claim(tmp_path / CLAIM))
    assert study.smallest_difference == 0.02 and study.seeds == (0, 1, 2, 3)
    assert study_again(open_claim(tmp_path / CLAIM), seeds=2).seeds == (0, 1)
    with pytest.raises(ConfigError, match="has 4 seeds, not 5"):
        study_again(open_claim(tmp_path / CLAIM), seeds=5)


def test_other_text_is_refused(tmp_path: Path) -> None:
    for folder, text in (("here", "the same text"), ("other", "another text")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text(f"{text}, again and again. " * 40)
    data = Text(path=str(tmp_path / "here" / "text.txt"), tokenizer=Bytes())
    study = dataclasses.replace(tiny_study(), base=tiny_config(2, data=data))
    plan = make_plan(study)
    write_plan(plan, tmp_path / "study", "command", Grouping(1, "", ""), False)
    claim = open_claim(tmp_path / "study" / CLAIM)
    with pytest.raises(ConfigError, match="not the claim's .* name the claim's text with --data.path=FILE"):
        plan_again(claim, path=str(tmp_path / "other" / "text.txt"))
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(MissingFile, match="--data.path=FILE"):
        plan_again(claim)
    again, _ = plan_again(claim, path=str(tmp_path / "there" / "text.txt"))
    assert again.data_hash == plan.data_hash


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def reproduce(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.reproduce", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_mistakes_get_one_sentence(tmp_path: Path) -> None:
    start(tmp_path, small_study())
    answer = reproduce(str(tmp_path / CLAIM), f"--workdir={tmp_path}")
    assert answer.returncode == 2 and "holds the claim itself" in answer.stderr and "Traceback" not in answer.stderr


def test_an_edited_claim_is_refused(tmp_path: Path) -> None:
    place = start(tmp_path, small_study())
    assert read_claim(RunFolder(tmp_path)) is not None
    with pytest.raises(MissingFile, match="there is no file"):
        open_claim(tmp_path / "nothing.json")
    edited = json.loads(place.read_text(CLAIM))
    edited["frozen"]["study"]["smallest_difference"] = 0.5
    place.write_json(CLAIM, edited)
    with pytest.raises(ConfigError, match="was edited"):
        open_claim(tmp_path / CLAIM)
