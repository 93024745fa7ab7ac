"""Axes, fronts and numbers of a page: labels keep their distance, ticks differ, no spot beats the front."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from gpt_jax.pages.axes import scale, spread
from gpt_jax.pages.charts import Spot, front
from gpt_jax.pages.numbers import compact, decimals


@given(some.lists(some.floats(0, 100), min_size=1, max_size=12))
def test_spread_keeps_order_and_distance(wanted: list[float]) -> None:
    placed = spread(wanted, 14.0, 0.0, 200.0)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    ys = [placed[i] for i in order]
    assert all(b - a >= 14.0 - 1e-6 for a, b in zip(ys, ys[1:], strict=False))
    assert -1e-6 <= ys[0] and ys[-1] <= 200.0 + 1e-6
    if all(wanted[b] - wanted[a] >= 14 for a, b in zip(order, order[1:], strict=False)):
        assert placed == pytest.approx(wanted)


@given(some.lists(some.tuples(some.integers(1, 6), some.integers(1, 6)), min_size=1, max_size=10))
def test_the_front_is_what_nothing_beats(places: list[tuple[int, int]]) -> None:
    spots = [Spot(str(i), None, i, float(x), float(y), None, "") for i, (x, y) in enumerate(places)]
    found = {(s.x, s.y) for s in front(spots)}
    beaten = {(x, y) for x, y in places for a, b in places if a <= x and b <= y and (a, b) != (x, y)}
    assert found == {(float(x), float(y)) for x, y in places} - {(float(x), float(y)) for x, y in beaten}


@given(some.floats(-1e6, 1e6), some.floats(1e-6, 1e6), some.sampled_from([None, 2, 10]))
def test_ticks_lie_within_and_are_told_apart(low: float, span: float, log: int | None) -> None:
    low = abs(low) + 1e-3 if log else low
    found = scale([low, low + span], 0.0, 300.0, log)
    for spacing in (50, 200):
        assert 2 <= len(found.ticks(spacing)) <= 8
    ticks = found.ticks(50)
    assert all(-1 <= found(value) <= 301 for value, _ in ticks)


def test_numbers_are_written_as_one_reads_them() -> None:
    assert [decimals(v, 4) for v in (1234.5, -0.01234, -0.00001)] == ["1,234.5000", "−0.0123", "0.0000"]
    assert [compact(v) for v in (0.003, 1480.2, 814_848, 5.4e6)] == ["0.003", "1,480", "815 k", "5.4 M"]
    assert compact(212 * 2**20, 2, padded=True) == "212 Mi" and compact(5.4e6, padded=True) == "5.40 M"
