"""Scores of heads in a report: paired by seed, corrected over all rows, and said to be secondary. And answers to
questions over training, of which each kind has a picture.
"""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from gpt_jax.ablation.findings import StudyResults
from gpt_jax.ablation.inside import differences
from gpt_jax.ablation.report import to_html, to_markdown
from tests.ablation import made_up

SCORES = ({"induction": {"0": 0.5, "1": 0.6, "2": 0.4}, "entropy": {"0": 1.0, "1": 1.0, "2": 1.0}},
          {"induction": {"0": 0.7, "1": 0.9, "2": 0.5, "9": 0.1}, "entropy": {"0": 0.5, "1": 0.5, "2": 0.5}},
          {"induction": {"2": 0.4}, "sink": {"0": 0.1}})  # fmt: skip


def scored() -> StudyResults:
    results = made_up.results(("mha", "gqa", "mqa"))
    arms = [dataclasses.replace(arm, inside=scores) for arm, scores in zip(results.arms, SCORES, strict=True)]
    return dataclasses.replace(results, arms=tuple(arms))


def test_differences_are_paired_and_corrected_over_all_rows() -> None:
    """Of seeds and scores that both arms have: three rows, so intervals hold in 1 − 5% / 3 of samples each."""
    found = {(row.arm, row.score): row for row in differences(scored())}
    assert list(found) == [("gqa", "induction"), ("gqa", "entropy"), ("mqa", "induction")]
    row, changes = found["gqa", "induction"], np.array([0.2, 0.3, 0.1])
    assert (row.n, row.baseline, row.mean) == (3, pytest.approx(0.5), pytest.approx(0.7))
    assert row.difference == pytest.approx(0.2)
    half = stats.t.isf(0.05 / 3 / 2, 2) * changes.std(ddof=1) / 3**0.5
    assert row.interval == pytest.approx((0.2 - half, 0.2 + half))
    assert row.p == pytest.approx(min(1, 3 * stats.ttest_1samp(changes, 0).pvalue))
    assert found["gqa", "entropy"].interval is None  # equal differences show no spread
    assert (found["mqa", "induction"].n, found["mqa", "induction"].p) == (1, None)


def test_the_report_has_them_as_secondary() -> None:
    page = to_html(scored())
    assert page.count("<h2>Inside the heads</h2>") == 1 and "Secondary: these scores decide nothing" in page
    assert "<td>+0.2</td>" in page and "−0.5" in page
    assert "| gqa | induction | 0.5 | 0.7 | +0.2 |" in to_markdown(scored())
    assert "Inside the heads" not in to_html(made_up.results()) + to_markdown(made_up.results())


def test_the_report_draws_the_accuracy_on_each_kind_of_question() -> None:
    results = made_up.results(("mha", "gqa"))
    answered = [{f"recall{kind}/{name}": ((2, y, y, y), (4, y, y - 0.01, y)) for kind in ("", "/full_of_pairs")
                 for name, y in (("accuracy", accuracy), ("chance", 0.125))} for accuracy in (0.5, 0.75)]  # fmt: skip
    arms = [dataclasses.replace(arm, suites=found) for arm, found in zip(results.arms, answered, strict=True)]
    page = to_html(dataclasses.replace(results, arms=tuple(arms)))
    for key, title in (("recall", "recall"), ("recall-full-of-pairs", "recall, full of pairs")):
        assert f'<figure id="suite-{key}">' in page and f"<h3>Accuracy on {title} over training</h3>" in page
    assert page.count("The level of chance is 0.125. Mean over seeds; the bands span them.") >= 2
    text_alone = [
        dataclasses.replace(arm, suites={"text/new_pair/loss": ((2, 1.0, 1.0, 1.0),)}) for arm in results.arms
    ]
    assert "suite-" not in to_html(dataclasses.replace(results, arms=tuple(text_alone)))
