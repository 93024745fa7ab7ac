"""ALiBi's slopes and T5's buckets against the published tables, and the biases that follow from them."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gpt_jax.config import Alibi, PositionConfig, Rope, T5Bias
from gpt_jax.config.errors import ConfigError
from gpt_jax.model import bias as module
from gpt_jax.model.bias import alibi_slopes, position_bias, relative_buckets
from tests import reference_positions as reference

RNG = np.random.default_rng(0)
QUERIES, KEYS = jnp.array([[4, 5, 200], [0, 9, 3]]), jnp.array([[0, 3, 4, 9], [7, 8, 0, 1]])


@pytest.mark.parametrize(
    "heads, slopes",
    [
        (8, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]),
        (2, [1 / 16, 1 / 256]),
        (1, [1 / 256]),
        (6, [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]),
        (3, [1 / 16, 1 / 256, 1 / 4]),
    ],
)
def test_alibi_slopes_are_the_papers(heads: int, slopes: list[float]) -> None:
    np.testing.assert_allclose(alibi_slopes(Alibi(), heads), slopes, rtol=1e-6)


@pytest.mark.parametrize("bias_max", [8.0, 4.0])
@pytest.mark.parametrize("heads", range(1, 18))
def test_alibi_slopes_are_blooms_and_mpts(heads: int, bias_max: float) -> None:
    """BLOOM completes the power of two below H from the one above; MPT takes the power above, first its every second
    slope, then the others, and cuts at H. It is the same.
    """
    slopes = alibi_slopes(Alibi(bias_max), heads)
    np.testing.assert_allclose(slopes, reference.alibi_slopes(heads, bias_max), rtol=1e-6)
    above = 2 ** math.ceil(math.log2(heads))
    mpt = [2.0 ** (-bias_max * i / above) for i in range(1, above + 1)]
    mpt = mpt if above == heads else (mpt[1::2] + mpt[::2])[:heads]
    np.testing.assert_allclose(slopes, mpt, rtol=1e-6)


def test_alibi_penalizes_distance_behind_and_ahead() -> None:
    bias = position_bias(Alibi(scale=0.5), None, jnp.array([[4]]), jnp.array([[0, 3, 4, 6]]), 2)
    np.testing.assert_allclose(bias[0, :, 0], [[-2 / 16, -0.5 / 16, 0, -1 / 16], [-2 / 256, -0.5 / 256, 0, -1 / 256]])


def test_falcons_alibi_rounds_slopes_positions_and_their_products() -> None:
    """12 heads, of which 4 have slopes that are no power of two, and positions that 8 bits can't hold."""
    queries, keys = jnp.array([[1000]]), jnp.array([[0, 257, 777, 999, 1000]])
    bias = position_bias(Alibi(rounded=True), None, queries, keys, 12)[0, :, 0]
    slopes = np.asarray(reference.alibi_slopes(12), ml_dtypes.bfloat16)
    places = (slopes[:, None] * np.asarray(keys[0], ml_dtypes.bfloat16)).astype(np.float64)
    np.testing.assert_array_equal(bias, places - places[:, -1:])
    assert np.abs(bias - position_bias(Alibi(), None, queries, keys, 12)[0, :, 0]).max() > 0.5


# As published T5 checkpoints were trained: the distance at which each bucket from 16 on begins.
T5_BEGINS = [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]


def test_t5_buckets_are_the_published_ones() -> None:
    distances = np.arange(201)
    wanted = [d if d < 16 else 15 + sum(d >= begin for begin in T5_BEGINS) for d in distances]
    np.testing.assert_array_equal(relative_buckets(jnp.asarray(distances), 32, 128), wanted)


@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (32, 256), (8, 20), (9, 128), (2, 5), (4, 3), (17, 27)])
def test_t5_buckets_are_the_papers(buckets: int, max_distance: int) -> None:
    distances = np.arange(-5, 300)
    wanted = [reference.t5_bucket(int(d), buckets, max_distance) for d in distances]
    np.testing.assert_array_equal(relative_buckets(jnp.asarray(distances), buckets, max_distance), wanted)


@pytest.mark.parametrize(
    "position", [Alibi(), Alibi(4.0, 0.3), Alibi(scale=0.3, rounded=True), T5Bias(), T5Bias(8, 20)], ids=repr
)
def test_the_bias_of_a_head_depends_on_the_distance(position: PositionConfig) -> None:
    table = RNG.normal(size=(position.buckets, 3)) if isinstance(position, T5Bias) else None
    given = None if table is None else jnp.asarray(table, jnp.bfloat16)
    bias = position_bias(position, given, QUERIES, KEYS, 3)
    assert bias.shape == (2, 3, 3, 4) and bias.dtype == jnp.float32
    exact = None if given is None else np.asarray(given, np.float64)
    for b, h, t, s in np.ndindex(2, 3, 3, 4):
        wanted = reference.bias(position, exact, h, 3, int(QUERIES[b, t]), int(KEYS[b, s]))
        np.testing.assert_allclose(bias[b, h, t, s], wanted, rtol=1e-6)


def test_a_learned_bias_learns_from_each_pair() -> None:
    positions = jnp.arange(6)[None]
    table = jnp.zeros((4, 2))
    gradient = jax.grad(lambda table: position_bias(T5Bias(4, 4), table, positions, positions, 2).sum())(table)
    # distances ≤ 0, 1, 2 … 2.8, 3 and more in a square of 6 × 6
    np.testing.assert_array_equal(gradient, np.array([[21, 5, 4, 6]] * 2).T)


def test_positions_that_act_elsewhere_add_no_bias() -> None:
    assert position_bias(None, None, QUERIES, KEYS, 2) is None
    assert position_bias(Rope(), None, QUERIES, KEYS, 2) is None


@dataclass(frozen=True)
class Recent(PositionConfig):
    """What a notebook might add."""


PositionConfig.choices.pop("Recent")  # no other test is to find it


def test_a_registered_scheme_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Recent has no implementation"):
        position_bias(Recent(), None, QUERIES, KEYS, 2)

    def row(c, table, queries, keys, heads):
        near = queries[:, :, None] - keys[:, None, :] < 2
        return jnp.where(near, 0.0, -1.0)[:, None].repeat(heads, 1)

    monkeypatch.setitem(module.BIASES, Recent, row)
    bias = position_bias(Recent(), None, jnp.array([[5]]), jnp.array([[3, 4, 5]]), 2)
    np.testing.assert_array_equal(bias[0, :, 0], [[-1, 0, 0]] * 2)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Alibi(0.0), "Alibi.bias_max must be positive"),
        (lambda: Alibi(scale=-1.0), "Alibi.scale must be positive"),
        (lambda: T5Bias(1), "T5Bias.buckets must be at least 2"),
        (lambda: T5Bias(32, 16), r"T5Bias.max_distance \(16\) must be greater than half of T5Bias.buckets \(32\)"),
    ],
)
def test_invalid_settings_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
