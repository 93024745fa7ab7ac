"""The answer in one sentence, also where runs diverged."""

from gpt_jax.ablation.findings import ArmResults, RunRecord
from gpt_jax.ablation.schema import StudyRecord
from gpt_jax.ablation.sentence import verdict_sentence
from gpt_jax.ablation.table import verdict_text
from gpt_jax.ablation.verdict import compare_arms

STUDY = StudyRecord(question="?", smallest_difference=0.01, baseline="mha", seeds=(0, 1), arms=(), runs=())


def arms(**losses: list[float | None]) -> tuple[ArmResults, ...]:
    made = [
        ArmResults(
            name=name,
            losses={str(seed): loss for seed, loss in enumerate(values)},
            runs=tuple(RunRecord(status="diverged" if loss is None else "finished") for loss in values),
        )
        for name, values in losses.items()
    ]
    return compare_arms(made, STUDY)


def test_an_arm_that_always_diverged_is_told() -> None:
    found = arms(mha=[1.0, 1.1, 1.2], mqa=[None, None, None])
    assert verdict_sentence(found, STUDY, 6, 6) == "Against mha, mqa diverged in 3 of 3 seeds."
    assert verdict_text(found[1]) == "diverged in 3 of 3 seeds"


def test_survivors_of_a_diverging_baseline_are_no_verdict() -> None:
    found = arms(mha=[1.0, 1.1, None, None], mqa=[1.2, 1.31, 1.2, 1.3])
    assert "mqa is not ranked: the baseline diverged in 2 of 4 seeds" in verdict_sentence(found, STUDY, 8, 8)
    assert found[1].versus_baseline is not None and found[1].versus_baseline.t_p_holm is None


def test_an_arm_that_diverged_now_and_then_is_not_ranked() -> None:
    found = arms(mha=[1.0, 1.1, 1.2], mqa=[0.5, 0.61, None])
    assert "mqa diverged in 1 of 3 seeds" in verdict_sentence(found, STUDY, 6, 6)


def test_signs_are_those_of_the_page() -> None:
    found = arms(mha=[1.0, 1.1, 1.2], mqa=[0.9, 1.0, 1.11])
    assert "mqa is better: −0.0967 nats (−0.1110 to −0.0823)" in verdict_sentence(found, STUDY, 6, 6)
