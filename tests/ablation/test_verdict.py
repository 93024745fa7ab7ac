"""A study's arms against its baseline and each other, and the answer in one sentence."""

import dataclasses

import numpy as np
import pytest

from gpt_jax.ablation import statistics as st
from gpt_jax.ablation.combine import product, vary
from gpt_jax.ablation.contrasts import contrasts
from gpt_jax.ablation.findings import ArmResults, Versus
from gpt_jax.ablation.judging import judge
from gpt_jax.ablation.schema import Budget, StudyRecord
from gpt_jax.ablation.sentence import verdict_sentence
from gpt_jax.ablation.verdict import compare_arms, seed_pairs

STUDY = StudyRecord(
    question="?", smallest_difference=0.01, baseline="mha", seeds=(0, 1, 2), planned_seeds=3, arms=(), runs=()
)


def made(**losses: list[float | None]) -> list[ArmResults]:
    by_seed = {name: {str(seed): loss for seed, loss in enumerate(values)} for name, values in losses.items()}
    return [ArmResults(name=name, values=values, losses=values) for name, values in by_seed.items()]


def sentence(arms: list[ArmResults], study: StudyRecord = STUDY) -> str:
    return verdict_sentence(compare_arms(arms, study), study, 6, 6)


def test_the_report_judges_as_judge_does() -> None:
    arms = made(mha=[1.0, 1.1, 1.2], mqa=[0.9, 1.0, 1.11], gqa=[1.0, 1.2, 1.1])
    losses = {arm.name: arm.values for arm in arms}
    expected = judge(losses, baseline="mha", smallest_difference=0.01)
    found = {arm.name: arm.versus_baseline for arm in compare_arms(arms, STUDY)}
    assert found["mha"] is None
    for name, versus in expected.items():
        assert dataclasses.replace(found[name], seeds_to_decide=None) == versus


def test_an_arm_that_always_failed_is_told() -> None:
    said = sentence(made(mha=[1.0, 1.1, 1.2], mqa=[None, None, None]))
    assert said == "Against mha, mqa is not ranked, 3 of 3 seeds failed, and 0 of the baseline’s."


def test_survivors_of_a_failing_baseline_are_no_verdict() -> None:
    arms = compare_arms(made(mha=[1.0, 1.1, None], mqa=[1.2, 1.31, 1.2]), STUDY)
    assert arms[1].versus_baseline.mean is None and arms[1].versus_baseline.verdict == "not ranked"
    assert arms[0].failures.failed == 1 and seed_pairs(arms[1], arms[0]) == []


def test_signs_are_those_of_the_page() -> None:
    study = dataclasses.replace(STUDY, most_seeds=3)
    said = sentence(made(mha=[1.0, 1.1, 1.2], mqa=[0.9, 1.0, 1.11]), study)
    assert "mqa is better: −0.0967 nats (−0.1110 to −0.0823)" in said


def test_an_arm_off_the_budget_is_not_ranked_nor_counted() -> None:
    arms = made(mha=[1.0, 1.1, 1.2], mqa=[0.9, 1.0, 1.11], big=[0.5, 0.6, 0.71])
    off = dataclasses.replace(arms[2], is_ranked=False, budget_ratio=1.31)
    study = dataclasses.replace(STUDY, budget=Budget("params", "model.mlp.width"))
    found = compare_arms([*arms[:2], off], study)
    assert found[2].versus_baseline.verdict == "not ranked" and found[2].versus_baseline.p is None
    assert found[1].versus_baseline == compare_arms(arms[:2], study)[1].versus_baseline
    assert "big is not ranked, its params are 1.310 × the baseline’s: −0.4967 nats" in sentence([*arms[:2], off], study)


def test_a_forced_arm_says_so_beside_its_verdict() -> None:
    arms = made(mha=[1.0, 1.1, 1.2], big=[0.5, 0.6, 0.71])
    study = dataclasses.replace(STUDY, most_seeds=3, budget=Budget("params", "model.mlp.width"))
    forced = [arms[0], dataclasses.replace(arms[1], budget_ratio=1.314)]
    said = "ranked by --force though its params are 1.314 × the baseline’s"
    assert compare_arms(forced, study)[1].versus_baseline.reason == said
    assert f"big is better, {said}: −0.4967 nats" in sentence(forced, study)
    near = [arms[0], dataclasses.replace(arms[1], budget_ratio=1.009)]
    assert compare_arms(near, study)[1].versus_baseline.reason is None


def test_another_endpoint_is_named_with_its_unit() -> None:
    study = dataclasses.replace(
        STUDY, metric="accuracy of the probe at 4", unit="share of the answers", lower_is_better=False, most_seeds=3
    )
    said = sentence(made(mha=[0.5, 0.51, 0.5], mqa=[0.9, 0.905, 0.9]), study)
    assert said.startswith(
        "By the accuracy of the probe at 4, against mha, mqa is better: +0.3983 share of the answers"
    )


def test_failure_rates_as_the_endpoint() -> None:
    study = dataclasses.replace(STUDY, endpoint={"type": "FailureRate"}, planned_seeds=8, most_seeds=8)
    arms = made(mha=[0.0] * 8, mqa=[1.0] * 7 + [0.0])
    found = compare_arms(arms, study)[1].versus_baseline
    assert found.verdict == "fails more often" and found.mean == 7 / 8
    assert found.p == pytest.approx(st.failures_p(7, 0, 8))


def test_rows_give_the_interval_for_text_like_this() -> None:
    rng, weights = np.random.default_rng(0), np.full(30, 64.0)
    arms = made(mha=[1.0, 1.1, 1.2], mqa=[0.9, 1.0, 1.11])
    rows = {
        arm.name: {seed: ((value + rng.normal(0, 0.1, 30)) * weights, weights) for seed, value in arm.values.items()}
        for arm in arms
    }
    found = compare_arms(arms, STUDY, rows)[1].versus_baseline
    differences = np.stack([rows["mqa"][seed][0] - rows["mha"][seed][0] for seed in ("0", "1", "2")])
    assert found.population_interval == st.population_interval(differences, weights)
    rows["mqa"]["2"] = (rows["mqa"]["2"][0][:29], weights[:29])  # another text
    assert compare_arms(arms, STUDY, rows)[1].versus_baseline.population_interval is None


def test_seeds_to_decide_are_told_for_an_undecided_arm() -> None:
    said = sentence(made(mha=[1.0, 1.1, 1.2], mqa=[0.97, 1.04, 1.19]))
    assert "mqa is undecided: −0.0333 nats" in said and "seeds would decide" in said


def test_arms_are_contrasted_with_each_other() -> None:
    arms = compare_arms(made(mha=[1.0, 1.1, 1.2], mqa=[0.9, 1.0, 1.11], gqa=[1.0, 1.21, 1.1]), STUDY)
    (found,) = contrasts(arms, STUDY)
    assert (found.name, found.kind) == ("gqa − mqa", "pair")
    assert found.versus.mean == pytest.approx(np.mean([0.1, 0.21, -0.01]))


def test_an_interaction_by_hand() -> None:
    """a gains 0.1 alone and b 0.2; together 0.4: 0.1 more than both."""
    arms = product(vary("x", {"-": 0, "a": 1}), vary("y", {"+": 0, "b": 1}))
    losses = {"-++": [1.0, 2.0, 3.0], "-+b": [0.8, 1.8, 2.81], "a++": [0.9, 1.9, 2.9], "a+b": [0.6, 1.6, 2.6]}
    found = [dataclasses.replace(arm, parts=planned.parts) for arm, planned in zip(made(**losses), arms, strict=True)]
    study = dataclasses.replace(STUDY, baseline="-++")
    kinds = interactions_of(found, study)
    assert list(kinds) == ["a × b"]
    assert kinds["a × b"].mean == pytest.approx(np.mean([-0.1, -0.1, -0.11]))
    assert kinds["a × b"].n == 3 and kinds["a × b"].verdict == "better"
    failed = dataclasses.replace(found[3], values={seed: None for seed in "012"}, losses={})
    versus = interactions_of([*found[:3], failed], study)["a × b"]
    assert (versus.verdict, versus.mean, versus.p, versus.failures) == ("not ranked", None, None, None)
    off = dataclasses.replace(found[3], is_ranked=False, budget_ratio=2.0)
    assert interactions_of([*found[:3], off], study) == {}, "an arm off the budget gains for another reason"


def interactions_of(arms: list[ArmResults], study: StudyRecord) -> dict[str, Versus]:
    return {c.name: c.versus for c in contrasts(compare_arms(arms, study), study) if c.kind == "interaction"}
