"""Diagnostics of made-up attention and made-up losses, whose answers are known by hand."""

import numpy as np
import pytest

from gpt_jax.analysis.diagnostics import by_position, diagnose
from gpt_jax.config import Attention
from tests.tiny import tiny

T = 6
PLACE = "blocks/0/attention"


def test_even_attention_has_the_entropy_of_its_keys():
    """Query t spreads evenly over t + 1 keys: entropy log(t + 1), 1 / (t + 1) on the first; query 0 doesn't count."""
    even = np.tril(np.ones((1, 2, T, T))) / np.arange(1, T + 1)[:, None]
    found = diagnose(tiny(), {f"{PLACE}/probabilities": even})
    assert found["attention_entropy"] == pytest.approx(np.mean(np.log(np.arange(2, T + 1))))
    assert found["sink_mass"] == pytest.approx(np.mean(1 / np.arange(2, T + 1)))
    assert found["largest_logit"] is None


def test_all_on_the_first_token_is_a_sink():
    sink = np.zeros((1, 2, T, T))
    sink[..., 0] = 1.0
    found = diagnose(tiny(), {f"{PLACE}/probabilities": sink})
    assert (found["attention_entropy"], found["sink_mass"]) == (pytest.approx(0.0, abs=1e-6), 1.0)


def test_the_largest_logit_is_among_those_that_are_seen():
    """q·k / √D with D = 4; the largest product, 50, is of a later key and doesn't count. Head 3 reads key head 1."""
    query, key = np.zeros((1, T, 4, 4)), np.zeros((1, T, 2, 4))
    query[0, 3, 3, 0] = 5.0
    key[0, 2, 1, 0], key[0, 4, 1, 0], key[0, 2, 0, 0] = -4.0, 10.0, 8.0
    model = tiny(Attention(heads=4, kv_heads=2, head_width=4))
    assert diagnose(model, {f"{PLACE}/queries": query, f"{PLACE}/keys": key})["largest_logit"] == 10.0


def test_positions_are_binned_by_weight():
    """Places without targets are left out; bins keep every target."""
    sums = np.zeros((3, 200))
    sums[0, 50:], sums[2, 50:] = np.arange(150) * 2.0, 2.0
    points = by_position(sums)
    places = [place for place, _ in points]
    assert len(points) <= 64 and places == sorted(places) and places[0] >= 45
    assert points[-1][1] > 140 and points[0][1] < 10
    assert by_position(np.ones((3, 8))) == [[float(t), 1.0] for t in range(8)]
