"""Numbers in, verdicts out: what may be called better, alike or failed, and what may not."""

import math

import numpy as np
import pytest

from gpt_jax.ablation import judge
from gpt_jax.ablation.calibration import calibrate
from gpt_jax.ablation.outside import Row, judge_table, read_table
from gpt_jax.config.errors import MissingFile, UserError

RNG = np.random.default_rng(0)
BASE = dict(enumerate((1.5 + RNG.normal(0, 0.01, 20)).tolist()))


def arm(shift: float, noise: float = 0.001, seeds: int = 20) -> dict[int, float]:
    spread = RNG.normal(0, noise, seeds)
    return {seed: float(BASE[seed] + shift + e) for seed, e in enumerate(spread - spread.mean())}


def verdict(values: dict[int, float | None], **options) -> tuple[str | None, str | None]:
    base = {seed: BASE[seed] for seed in values}
    found = judge({"base": base, "arm": values}, baseline="base", smallest_difference=0.01, **options)["arm"]
    return found.verdict, found.reason


@pytest.mark.parametrize(
    ("shift", "noise", "seeds", "expected"),
    [
        (-0.05, 0.001, 8, "better"),
        (0.05, 0.001, 8, "worse"),
        (-0.008, 0.004, 8, "slightly better"),  # certain, but by less than matters, as estimated
        (0.008, 0.004, 8, "slightly worse"),
        (0.0, 0.001, 20, "no difference that matters"),
        (-0.005, 0.001, 20, "no difference that matters"),
        (0.0, 0.001, 8, "undecided"),  # too few seeds to rule out that a fifth fails
        (0.0, 0.1, 8, "undecided"),
        (0.05, 0.0, 1, "undecided"),
    ],
)
def test_verdicts(shift: float, noise: float, seeds: int, expected: str):
    assert verdict(arm(shift, noise, seeds))[0] == expected


def test_a_certain_gain_that_does_not_matter_is_told():
    assert verdict(arm(-0.005))[1] == "better, by less than matters"


def test_no_difference_needs_seeds_without_failure():
    found, reason = verdict(arm(0.0, 0.0005, 13))
    assert found == "undecided" and "14 seeds to rule out that 20%" in reason
    assert verdict(arm(0.0, 0.0005, 14))[0] == "no difference that matters"
    assert verdict(arm(0.0, 0.0005, 5), rules_out_failures=0.5)[0] == "no difference that matters"
    assert verdict(arm(0.0, 0.0005, 4), rules_out_failures=0.9)[0] == "undecided"


def test_the_interval_and_the_verdict_and_p_agree():
    base = {seed: BASE[seed] for seed in range(8)}
    for noise in (0.005, 0.01, 0.02, 0.03):
        values = arm(0.02, noise, 8)
        found = judge({"b": base, "a": values, "c": arm(0, 0.01, 8)}, baseline="b", smallest_difference=0.001)["a"]
        excludes = found.interval[0] > 0 or found.interval[1] < 0
        assert excludes == (found.verdict in ("worse", "slightly worse")) == (found.p < 0.05)
        assert found.interval[0] < found.t_interval[0] < found.t_interval[1] < found.interval[1]
        assert found.t_p < found.p


def test_equal_differences_of_rounded_values_decide_nothing():
    """Two decimals hide the spread: of two seeds a tenth would be false verdicts, and far arms would seem alike."""
    rng, false = np.random.default_rng(0), 0
    for _ in range(300):
        ours, theirs = (np.round(1.5 + rng.normal(0, 0.007, 2), 2).tolist() for _ in range(2))
        found = judge({"b": dict(enumerate(theirs)), "a": dict(enumerate(ours))}, baseline="b", smallest_difference=0.1)
        false += found["a"].verdict != "undecided"
    assert false / 300 <= 0.05
    base = {seed: round(1.5 + 0.01 * (seed % 3), 2) for seed in range(20)}
    alike = judge({"b": base, "a": base}, baseline="b", smallest_difference=0.01)["a"]
    assert (alike.verdict, alike.interval) == ("undecided", None)
    assert alike.reason == "all differences are equal: is the value rounded?"
    apart = {seed: value + 0.05 for seed, value in base.items()}
    found = judge({"b": base, "a": apart}, baseline="b", smallest_difference=0.01, most=20)["a"]
    assert found.verdict == "worse" and found.p == pytest.approx(2.0**-19), "twenty signs are no chance"


def test_failed_seeds_have_no_mean_difference():
    """The survivors' difference is nowhere, whether they look better or worse."""
    values: dict[int, float | None] = {**arm(-0.2, seeds=8), 3: math.nan, 5: None}
    found = judge({"base": {s: BASE[s] for s in values}, "arm": values}, baseline="base", smallest_difference=0.01)
    versus = found["arm"]
    for name in ("mean", "interval", "t_interval", "robust", "std", "population_interval"):
        assert getattr(versus, name) is None
    assert versus.verdict == "not ranked" and versus.failures.failed == 2 and versus.failures.n == 8
    assert versus.reason == "2 of 8 seeds failed, and 0 of the baseline’s"


def test_failed_seeds_are_never_no_difference():
    """However large the margin is in the unit of the values, which is not that of a failure rate."""
    values: dict[int, float | None] = {**dict.fromkeys(range(20), 1e12), 3: None}
    base = dict.fromkeys(range(20), 1e12)
    found = judge({"base": base, "arm": values}, baseline="base", smallest_difference=1e10)["arm"]
    assert found.verdict == "not ranked" and found.reason == "1 of 20 seeds failed, and 0 of the baseline’s"


def test_an_arm_that_always_fails_fails_more_often():
    assert verdict(dict.fromkeys(range(8)))[0] == "fails more often"


def test_an_outlier_is_named():
    values = arm(0.0, seeds=8) | {6: 4.0}
    base = {seed: BASE[seed] for seed in values}
    found = judge({"base": base, "arm": values}, baseline="base", smallest_difference=0.01)["arm"]
    assert found.outliers == ("6",) and found.robust < 0.1 < found.mean


def test_before_the_planned_seeds_there_is_no_verdict():
    found, reason = verdict(arm(0.5, seeds=5), planned=8)
    assert found == "undecided" and reason == "5 of 8 planned seeds done"


def test_added_seeds_pay_for_the_look_that_was_taken():
    """The same numbers decide less after a look at 8 of them than if 20 had been planned."""
    planned, added = (
        judge({"base": BASE, "arm": arm(0.02, 0.02)}, baseline="base", smallest_difference=0.01, planned=n)["arm"]
        for n in (20, 8)
    )
    assert added.interval[1] - added.interval[0] > 1.2 * (planned.interval[1] - planned.interval[0])


def test_higher_may_be_better():
    assert verdict(arm(0.05, seeds=8), lower_is_better=False)[0] == "better"


@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        ({"mha": {0: 1.0}}, {"baseline": "mhe"}, 'the baseline "mhe" is not among the arms.*mha'),
        ({"a": {0: 1.0}, "b": {1: 1.0}}, {"baseline": "a"}, "shares no seed"),
        ({"a": BASE, "b": BASE}, {"baseline": "a", "planned": 5, "most": 10}, "20 seeds and the claim allows 10"),
        ({"a": BASE, "b": BASE}, {"baseline": "a", "smallest_difference": 0.0}, "must be positive"),
        ({"a": BASE, "b": BASE}, {"baseline": "a", "smallest_difference": math.inf}, "must be positive and finite"),
    ],
)
def test_mistakes_get_a_sentence(losses: dict, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        judge(losses, **{"smallest_difference": 0.01} | options)


def test_every_calibrated_figure_holds():
    """Few simulated studies: the shares may miss by chance, but not by far."""
    for figure in calibrate(100):
        slack = 3 * math.sqrt(0.05 * 0.95 / figure.studies)
        assert figure.asked[0] - slack <= figure.seen <= figure.asked[1] + slack, figure


# ── results of any codebase ──────────────────────────────────────────────────────────────────────────────────────────


def table(tmp_path, text: str) -> list[Row]:
    file = tmp_path / "results.csv"
    file.write_text(text)
    return read_table(file)


def test_a_table_is_judged_as_a_study_is(tmp_path):
    values = {"base": BASE, "arm": arm(-0.05, seeds=8)}
    lines = [f"{name},{seed},{v!r}" for name, losses in values.items() for seed, v in losses.items() if seed < 8]
    rows = table(tmp_path, "\n".join(["arm,seed,loss", *lines]))
    found = judge_table(rows, baseline="base", smallest_difference=0.01)
    losses = {name: {seed: v for seed, v in known.items() if seed < 8} for name, known in values.items()}
    expected = judge(losses, baseline="base", smallest_difference=0.01)["arm"]
    assert found.arms[1].versus_baseline == expected
    assert "arm is better: −0.0500 nats" in found.verdict


def test_tuning_seeds_decide_nothing_and_later_looks_are_counted(tmp_path):
    lines = ["arm,seed,loss,rate,look"]
    for name, best in (("base", 0.1), ("arm", 0.2)):
        lines += [f"{name},t,{1 + abs(rate - best)},{rate}," for rate in (0.1, 0.2)]
        lines += [f"{name},{seed},{1.5 + 0.01 * seed},{best},{1 if seed < 3 else 2}" for seed in range(5)]
    lines[-1] = "arm,4,diverged,0.2,2"
    found = judge_table(table(tmp_path, "\n".join(lines)), baseline="base", smallest_difference=0.01)
    assert found.planned_seeds == 3 and found.arms[1].values["4"] is None
    assert [trial.learning_rate for trial in found.arms[1].tuned.trials] == [0.1, 0.2]
    assert found.arms[1].tuned.best.learning_rate == found.arms[1].learning_rate == 0.2 and not found.marks


def test_seeds_without_a_pair_are_told(tmp_path):
    """Leaving out an arm's bad seeds, or all that the baseline has."""
    lines = ["arm,seed,loss,look", *(f"base,{seed},{1.5 + 0.01 * seed},{1 + (seed > 2)}" for seed in range(5))]
    lines += [f"arm,{seed},{1.4 + 0.011 * seed},{1 + (seed > 2)}" for seed in (0, 1, 2, 4)]
    lines += [f"other,{seed},1.4,1" for seed in (7, 8, 9)]
    found = judge_table(table(tmp_path, "\n".join(lines)), baseline="base", smallest_difference=0.01)
    without = "without a pair, and so left out of"
    assert found.arms[1].versus_baseline.n == 4 and found.arms[2].versus_baseline is None
    assert found.marks == (
        f"{without} arm’s difference: seed 3 of base only",
        f"{without} other’s difference: seeds 0, 1, 2, 3, 4 of base only and seeds 7, 8, 9 of other only",
    )


def test_an_arm_that_tried_more_rates_is_told(tmp_path):
    lines = ["arm,seed,loss,rate", *(f"base,t,{1 + rate},{rate}" for rate in (0.1, 0.2))]
    lines += [f"arm,t,{1 + rate},{rate}" for rate in (0.1, 0.2, 0.3)]
    lines += [f"{name},{seed},{1.5 + 0.01 * seed},0.1" for name in ("base", "arm") for seed in range(3)]
    found = judge_table(table(tmp_path, "\n".join(lines)), baseline="base", smallest_difference=0.01)
    assert found.marks == ("tuned unequally, by rates tried: base 2, arm 3",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arm,loss\na,1", 'no column "seed"'),
        ("arm,seed,loss,ratt\na,0,1,2", 'unknown column "ratt".*rate'),
        ("arm,seed,loss\na,0,one", 'line 2: "one" is no number'),
        ("arm,seed,loss\na,0,1\na,0,2", "has seed 0 twice"),
        ("arm,seed,loss\nb,0,1", 'the baseline "a" is not among'),
        ("arm,seed,loss,rate\na,0,1,1\na,1,1,2\nb,0,1,1\nb,1,1,1", "several rates at seeds that decide"),
        ("arm,seed,loss,rate\na,0,1,1\na,0,1,2", 'no seed of "a" decides'),
    ],
)
def test_a_bad_table_gets_a_sentence(tmp_path, text: str, message: str):
    with pytest.raises(UserError, match=message):
        judge_table(table(tmp_path, text), baseline="a", smallest_difference=0.01)


def test_a_missing_table_is_told(tmp_path):
    with pytest.raises(MissingFile, match="columns arm, seed, loss"):
        read_table(tmp_path / "results.csv")
