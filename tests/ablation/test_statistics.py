"""Known answers: what is certain about small samples by hand, tables or simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from gpt_jax.ablation import sequential
from gpt_jax.ablation import statistics as s
from gpt_jax.ablation.judging import Rule
from gpt_jax.ablation.power import outcomes, power, seeds_to_decide


def normal_with(mean: float, std: float, n: int) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=n)
    return mean + std * (x - x.mean()) / x.std(ddof=1)


def test_the_t_interval_is_the_tables():
    """n = 5, mean 0, std 1: ± 2.776 / √5."""
    low, high = s.t_interval(normal_with(0.0, 1.0, 5))
    assert (low, high) == (pytest.approx(-1.2417, abs=1e-3), pytest.approx(1.2417, abs=1e-3))
    assert s.t_interval([1.0]) is None and s.t_interval([2.0, 2.0]) is None


def test_the_t_test_is_scipys():
    d = normal_with(0.4, 1.0, 7)
    assert s.t_p(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    assert s.t_p([0.0, 0.0]) == 1.0 and s.t_p([1.0]) is None
    assert s.t_p([0.1] * 6) == stats.binomtest(6, 6).pvalue


@pytest.mark.parametrize("n", [5, 6, 8, 12])
def test_hodges_lehmann_is_exact(n: int):
    """The interval's level is the share of the 2ⁿ signs whose rank sum lies within, and Wilcoxon's test agrees."""
    x = np.random.default_rng(n).normal(0.3, 1.0, n)
    estimate, interval, level = s.hodges_lehmann(x)
    means = np.sort([(a + b) / 2 for a, b in itertools.combinations_with_replacement(x, 2)])
    assert estimate == np.median(means)
    cut = int(np.flatnonzero(means == interval[0])[0]) + 1
    sums = [sum(ranks) for size in range(n + 1) for ranks in itertools.combinations(range(1, n + 1), size)]
    assert level == pytest.approx(1 - 2 * np.mean(np.array(sums) < cut))
    assert level >= 0.95 or (n < 6 and cut == 1)
    inside, outside = interval[0] + 1e-9, interval[0] - 1e-9
    p_inside, p_outside = (stats.wilcoxon(x - at, method="exact").pvalue for at in (inside, outside))
    assert p_outside <= 1 - level + 1e-12 < p_inside


def test_an_outlier_is_named_and_two_do_not_hide_each_other():
    x = normal_with(0.0, 0.01, 8)
    assert s.outliers(x) == []
    assert s.outliers(np.r_[x, 2.5]) == [8]
    assert sorted(s.outliers(np.r_[x, 2.5, 2.4])) == [8, 9]
    assert s.outliers([0.0, 0.0, 9.0]) == []  # three numbers name none


def test_few_samples_without_an_outlier_name_one():
    rng = np.random.default_rng(0)
    for n in (4, 8, 20):
        assert np.mean([bool(s.outliers(rng.normal(size=n))) for _ in range(1000)]) < 0.025


def test_the_correlation_of_pairs():
    x = normal_with(0.0, 1.0, 9)
    assert s.correlation(x, 2 * x + 1) == pytest.approx(1.0)
    assert s.correlation([1.0, 2.0], [1.0, 2.0]) is None and s.correlation([1.0] * 3, [1.0, 2.0, 3.0]) is None


def test_rows_of_one_text_add_to_the_uncertainty():
    """Rows that differ alike in all seeds leave the interval for this text alone, and widen the other."""
    rng = np.random.default_rng(0)
    weights, seeds = np.full(50, 64.0), rng.normal(0, 0.01, (5, 1))
    noise = rng.normal(0, 0.1, (1, 50))
    noise -= noise.mean()
    sums = (seeds + noise) * weights
    this_text = s.t_interval(seeds[:, 0])
    like_it = s.population_interval(sums, weights)
    assert like_it[0] < this_text[0] and this_text[1] < like_it[1]
    alone = s.population_interval(seeds * weights, weights)
    assert alone == pytest.approx(this_text, rel=1e-6)
    assert s.population_interval(sums[:1], weights) is None


def test_rows_weigh_by_their_targets():
    """A row without targets is no row, and the mean is the ratio of sums."""
    rng = np.random.default_rng(0)
    weights = np.array([64.0] * 20 + [7.0, 0.0])
    sums = rng.normal(0.2, 0.1, (4, 22)) * weights
    low, high = s.population_interval(sums, weights)
    assert (low + high) / 2 == pytest.approx(sums.sum() / (4 * weights.sum()))
    assert (low, high) == s.population_interval(sums[:, :21], weights[:21])


def test_failures_are_compared_exactly():
    assert s.failures_p(0, 0, 8) == 1.0
    assert s.failures_p(8, 0, 8) == pytest.approx(2 / math.comb(16, 8))
    assert s.rate_interval(0, 8) == (0.0, pytest.approx(1 - 0.025 ** (1 / 8)))
    assert s.rate_interval(0, 0) is None
    low, high = s.rate_difference_interval(3, 0, 8)
    assert low < 3 / 8 < high and low < 0


def test_seeds_that_rule_out_failures():
    """0.8¹³ > 5% > 0.8¹⁴; at the largest rates five are the least."""
    assert s.seeds_without_failure(0.2) == 14 and s.seeds_without_failure(0.9) == 5
    assert 0.8**14 < 0.05 < 0.8**13
    assert s.unseen_rate(14) < 0.2 < s.unseen_rate(13)


def test_a_summary_by_hand():
    found = s.summarize([1.0, 3.0])
    assert (found.mean, found.n, found.std) == (2.0, 2, pytest.approx(math.sqrt(2)))
    assert s.summarize([]).mean is None


def test_learning_rate_sensitivity_by_hand():
    """Means 2, 3 and, diverged and capped, 5: (0 + 1 + 3) / 3 above the best."""
    found = s.learning_rate_sensitivity({1e-3: [2.0, 2.0], 1e-2: [3.0], 1e-1: [None, 9.0]}, initial=5.0)
    assert found == pytest.approx(4 / 3)
    assert s.learning_rate_sensitivity({1e-3: [2.0]}, initial=5.0) is None


# ── looks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_claim_without_later_looks_pays_nothing():
    assert sequential.level(0.05, 8, 8, 8) == 0.05 and sequential.corrected(0.01, 8, 8, 8) == 0.01
    # One seed has no test: a claim that plans one has its first look at two.
    assert sequential.level(0.05, 1, 3, 3) == sequential.level(0.05, 2, 3, 3) < 0.05
    assert sequential.corrected(0.01, 1, 3, 3) == sequential.corrected(0.01, 2, 3, 3) > 0.01


@pytest.mark.parametrize("alpha", [0.05, 0.005, 0.0005])
def test_the_level_of_a_look_and_the_corrected_p_agree(alpha: float):
    for look in (5, 6, 40):
        size = sequential.level(alpha, 5, 40, look)
        assert sequential.corrected(size * 0.999, 5, 40, look) <= alpha * 1.01 < alpha * 1.5
        assert sequential.corrected(size * 1.3, 5, 40, look) > alpha
    assert sequential.level(alpha, 5, 40, 5) > 5 * sequential.level(alpha, 5, 40, 6) > 0


def test_corrected_p_grows_with_p():
    p = [sequential.corrected(x, 5, 40, 9) for x in np.geomspace(1e-9, 1, 200)]
    assert p == sorted(p) and p[-1] == 1.0 and p[0] < 1e-6


def test_looks_keep_their_level():
    """20,000 studies without a difference, looked at after every seed; the plain test would be wrong in a quarter."""
    d = np.random.default_rng(1).normal(size=(20_000, 40))
    false = np.zeros(len(d), bool)
    for n in range(5, 41):
        false |= stats.ttest_1samp(d[:, :n], 0, axis=1).pvalue < sequential.level(0.05, 5, 40, n)
    assert 0.04 < false.mean() < 0.052


# ── power ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_power_is_that_of_the_noncentral_t():
    rule = Rule(1e-9, planned=8, most=8)
    different, alike, _ = outcomes(1.2, 1.0, 8, rule)
    t = stats.t.isf(0.025, 7)
    exact = stats.nct.sf(t, 7, 1.2 * math.sqrt(8)) + stats.nct.cdf(-t, 7, 1.2 * math.sqrt(8))
    assert different == pytest.approx(exact, abs=0.02) and alike == 0.0
    assert outcomes(power(1.0, 8, rule).detectable, 1.0, 8, rule)[0] == pytest.approx(0.8, abs=0.001)


def test_more_arms_and_later_looks_need_more():
    one, six = (power(1.0, 8, Rule(1e-9, comparisons=k, planned=8)).detectable for k in (1, 6))
    assert one < six
    assert power(1.0, 8, Rule(1e-9, planned=5)).detectable > one


def test_that_many_seeds_decide():
    rule = Rule(0.1, planned=5)
    n = seeds_to_decide(0.5, 0.5, 5, rule)
    assert 5 < n < 40 and outcomes(0.5, 0.5, n, rule)[0] >= 0.8 > outcomes(0.5, 0.5, n - 1, rule).decided
    assert seeds_to_decide(0.1, 0.5, 5, rule) is None  # at the margin nothing decides
    alike = seeds_to_decide(0.0, 0.08, 5, rule)
    assert alike is not None and alike >= 14
