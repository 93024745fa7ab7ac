"""Known answers: what is certain about small samples by hand, tables or simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from gpt_jax.ablation import statistics as s


def normal_with(mean: float, std: float, n: int) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=n)
    return mean + std * (x - x.mean()) / x.std(ddof=1)


def test_eighty_runs_reach_a_target_that_they_pass_narrowly():
    losses = normal_with(3.2791, 0.0019, 80)
    assert s.p_reaches(losses.tolist(), 3.28) < 1e-4
    assert s.p_reaches(losses.tolist(), 3.2791) == pytest.approx(0.5)
    assert s.p_reaches((losses + 0.0018).tolist(), 3.28) > 0.99


def test_a_target_needs_two_losses():
    with pytest.raises(ValueError, match="two losses"):
        s.p_reaches([3.0], 3.28)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_sign_flips_reach_two_in_two_to_the_n(n: int):
    assert s.sign_flip_p([-1.0 - 0.1 * i for i in range(n)]) == pytest.approx(2 / 2**n)
    assert (2 / 2**n < 0.05) == (n > 5)


def test_sign_flips_by_hand():
    """|mean| over the 8 patterns of 1, 2, −4: 6 of them are at least as far from 0 as −1/3 is."""
    d = np.array([1.0, 2.0, -4.0])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
    expected = np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-9)
    assert s.sign_flip_p(d) == pytest.approx(expected)


def test_sign_flips_of_many_agree_with_the_t_test():
    d = np.random.default_rng(1).normal(0.45, 1.0, 24)
    assert s.sign_flip_p(d) == pytest.approx(s.t_p(d), abs=0.01)
    assert s.sign_flip_p(d) == s.sign_flip_p(d)


def test_the_t_interval_is_the_tables():
    """n = 5, mean 0, std 1: ± 2.776 / √5."""
    low, high = s.t_interval(normal_with(0.0, 1.0, 5))
    assert (low, high) == (pytest.approx(-1.2417, abs=1e-3), pytest.approx(1.2417, abs=1e-3))


@pytest.mark.parametrize("n", [5, 8, 20])
def test_the_t_interval_covers(n: int):
    samples = np.random.default_rng(n).normal(0.3, 2.0, (4000, n))
    intervals = np.array([s.t_interval(x) for x in samples])
    covered = np.mean((intervals[:, 0] < 0.3) & (0.3 < intervals[:, 1]))
    assert 0.93 < covered < 0.97


def test_bca_leans_with_a_skewed_sample():
    x = np.random.default_rng(0).exponential(size=40)
    low, high = s.bca_interval(x)
    assert low < x.mean() < high
    assert high - x.mean() > x.mean() - low
    assert (low, high) == s.bca_interval(x)


def test_holm_by_hand():
    corrected = s.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": None})
    assert corrected == {
        "d": pytest.approx(0.02),
        "a": pytest.approx(0.03),
        "c": pytest.approx(0.06),
        "b": pytest.approx(0.06),  # never below the one before it
        "e": None,
    }
    assert s.holm({"a": 0.9, "b": 0.8})["b"] == 1.0


def test_seeds_to_decide():
    """(1.95996 + 0.84162)² = 7.849 at σ = Δ."""
    assert s.seeds_to_decide(1.0, 1.0) == 8
    assert s.seeds_to_decide(0.02, 0.01) == math.ceil(7.849 * 4)
    with pytest.raises(ValueError, match="positive"):
        s.seeds_to_decide(1.0, 0.0)


def test_that_many_seeds_decide():
    n = s.seeds_to_decide(1.0, 0.5)
    samples = np.random.default_rng(0).normal(0.5, 1.0, (4000, n))
    assert np.mean(stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize(
    ("differences", "smallest", "expected"),
    [
        ([-0.10, -0.11, -0.09, -0.10], 0.01, "better"),
        ([0.10, 0.11, 0.09, 0.10], 0.01, "worse"),
        ([0.001, 0.002, 0.001, 0.002], 0.01, "no difference that matters"),
        ([0.1, -0.1, 0.05, -0.02], 0.01, "undecided"),
        ([0.1], 0.01, "undecided"),
        ([0.0, 0.0, 0.0], 0.01, "no difference that matters"),
    ],
)
def test_verdicts(differences: list[float], smallest: float, expected: str):
    comparison = s.compare(differences, [0.0] * len(differences))
    assert s.verdict(comparison, comparison.t_p, smallest) == expected


def test_pairing_removes_what_seeds_share():
    """Two arms whose seeds differ by far more than the arms do: only the pairs can tell them apart."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0.0, 1.0, 8)
    baseline, arm = shared, shared - 0.05 + rng.normal(0.0, 0.01, 8)
    assert s.compare(arm.tolist(), baseline.tolist()).t_p < 1e-4
    assert stats.ttest_ind(arm, baseline).pvalue > 0.5


def test_equal_losses_are_no_difference():
    found = s.compare([2.0, 3.0, 2.5], [2.0, 3.0, 2.5])
    assert (found.mean, found.t_p, found.sign_flip_p, found.t_interval) == (0.0, 1.0, 1.0, (0.0, 0.0))


def test_losses_without_their_pair_are_refused():
    with pytest.raises(ValueError, match="pairs"):
        s.compare([1.0, 2.0], [1.0])


def test_a_summary_leaves_out_what_is_not_finite():
    found = s.summarize([1.0, 3.0, math.nan])
    assert (found.mean, found.n, found.std) == (2.0, 2, pytest.approx(math.sqrt(2)))
    assert s.summarize([]).mean is None


def test_learning_rate_sensitivity_by_hand():
    """Means 2, 3 and, diverged and capped, 5: (0 + 1 + 3) / 3 above the best."""
    found = s.learning_rate_sensitivity({1e-3: [2.0, 2.0], 1e-2: [3.0], 1e-1: [None, 9.0]}, initial=5.0)
    assert found == pytest.approx(4 / 3)
    assert s.learning_rate_sensitivity({1e-3: [2.0]}, initial=5.0) is None
