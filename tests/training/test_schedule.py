import math

import numpy as np
import pytest

from gpt_jax.config import Constant, InverseSqrt, LinearDecay, ScheduleConfig, WarmupCosine, WarmupStableDecay
from gpt_jax.training.schedule import MAKERS, make_schedule, resolve_schedule

CASES = [
    (Constant(), {0: 1.0, 1000: 1.0}),
    (Constant(warmup=4), {0: 0.0, 1: 0.25, 4: 1.0, 9: 1.0}),
    (
        WarmupCosine(10, 0.1, 110),
        {0: 0.0, 5: 0.5, 10: 1.0, 35: 0.1 + 0.45 * (1 + math.sqrt(0.5)), 60: 0.55, 110: 0.1, 999: 0.1},
    ),
    (LinearDecay(10, 0.2, 110), {0: 0.0, 10: 1.0, 60: 0.6, 110: 0.2, 999: 0.2}),
    (LinearDecay(0, 0.0, 100), {0: 1.0, 25: 0.75, 100: 0.0}),
    (WarmupStableDecay(20, 10, 0.5, 100), {0: 0.0, 5: 0.5, 10: 1.0, 80: 1.0, 90: 0.75, 100: 0.5, 999: 0.5}),
    (WarmupStableDecay(20, 0, 0.0, 20), {0: 1.0, 10: 0.5, 20: 0.0}),
    (InverseSqrt(100), {0: 0.0, 50: 0.5, 100: 1.0, 400: 0.5, 10_000: 0.1}),
]


@pytest.mark.parametrize(("schedule", "expected"), CASES, ids=lambda x: str(x) if isinstance(x, ScheduleConfig) else "")
def test_factor_at_each_step(schedule, expected):
    factor = make_schedule(schedule)
    np.testing.assert_allclose([factor(np.int32(step)) for step in expected], list(expected.values()), atol=1e-6)


def test_every_schedule_is_tested():
    assert {type(schedule) for schedule, _ in CASES} == set(MAKERS) == set(ScheduleConfig.choices.values())


def test_length_is_filled_in_once():
    assert resolve_schedule(WarmupCosine(5), 300).steps == 300
    assert resolve_schedule(WarmupCosine(5, steps=200), 300).steps == 200
    assert resolve_schedule(Constant(5), 300) == Constant(5)


def test_a_run_shorter_than_its_warmup_is_the_beginning_of_one() -> None:
    assert resolve_schedule(WarmupCosine(5), 3).steps == 6
    assert resolve_schedule(WarmupStableDecay(decay=4, warmup=5), 3).steps == 9


def test_inverse_sqrt_without_warmup_is_refused():
    with pytest.raises(ValueError, match="schedule.warmup"):
        make_schedule(InverseSqrt(0))


def test_a_schedule_without_length_is_refused():
    with pytest.raises(ValueError, match="resolve_schedule"):
        make_schedule(LinearDecay())


@pytest.mark.parametrize(
    "schedule", [WarmupCosine(100, steps=100), LinearDecay(100, steps=100), WarmupStableDecay(60, 50, steps=100)]
)
def test_a_length_too_short_for_its_parts_is_refused(schedule):
    with pytest.raises(ValueError, match="schedule.steps"):
        make_schedule(schedule)
