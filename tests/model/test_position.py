import math

import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.config import Rope, rope_width
from gpt_jax.model.position import LearnedPosition, alibi_bias, alibi_slopes, rotate, sinusoidal_position
from tests import reference

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 5, 3, 8)), jnp.float32)  # B T N D
POSITIONS = jnp.array([[0, 1, 2, 3, 4], [7, 0, 1, 100, 2]])
ROPES = [Rope(), Rope(interleaved=True), Rope(theta=50.0, fraction=0.5), Rope(fraction=0.3, interleaved=True)]


@pytest.mark.parametrize("rope", ROPES, ids=repr)
def test_rope_is_a_multiplication_by_a_complex_number(rope: Rope) -> None:
    out = np.asarray(rotate(X, POSITIONS, rope))
    for b, t, n in np.ndindex(2, 5, 3):
        wanted = reference.rope(rope, np.asarray(X[b, t, n], np.float64), int(POSITIONS[b, t]))
        np.testing.assert_allclose(out[b, t, n], wanted, atol=2e-5)


@pytest.mark.parametrize("rope", ROPES, ids=repr)
def test_rope_keeps_lengths_and_leaves_position_0_and_the_rest_of_the_head(rope: Rope) -> None:
    out = rotate(X, POSITIONS, rope)
    np.testing.assert_allclose(jnp.linalg.norm(out, axis=-1), jnp.linalg.norm(X, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(out[0, 0], X[0, 0])
    np.testing.assert_array_equal(out[..., rope_width(rope, 8) :], X[..., rope_width(rope, 8) :])
    assert not np.allclose(out[0, 1, :, : rope_width(rope, 8)], X[0, 1, :, : rope_width(rope, 8)])


@pytest.mark.parametrize("rope", ROPES, ids=repr)
def test_scores_under_rope_depend_on_the_distance_alone(rope: Rope) -> None:
    q, k = X[:, :1], X[:, 1:2]

    def score(m: int, n: int) -> np.ndarray:
        turned = rotate(q, jnp.array([[m]]), rope) * rotate(k, jnp.array([[n]]), rope)
        return np.asarray(turned.sum(-1))

    np.testing.assert_allclose(score(9, 4), score(105, 100), atol=1e-4)
    assert not np.allclose(score(9, 4), score(4, 9), atol=1e-2)  # the order counts


def test_rope_turns_in_float32() -> None:
    far = jnp.full((1, 5), 3001)  # in bfloat16 it would be 3008, another angle
    wide = rotate(X[:1].astype(jnp.bfloat16).astype(jnp.float32), far, Rope())
    narrow = rotate(X[:1].astype(jnp.bfloat16), far, Rope())
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(jnp.float32), wide, atol=0.02)


@pytest.mark.parametrize(
    "fraction, head_width, width", [(1.0, 8, 8), (0.5, 8, 4), (0.3, 8, 2), (0.25, 80, 20), (1.0, 7, 6)]
)
def test_rope_width_is_the_even_part_of_the_fraction(fraction: float, head_width: int, width: int) -> None:
    assert rope_width(Rope(fraction=fraction), head_width) == width


def test_sinusoidal_position_is_vaswanis_formula() -> None:
    code = sinusoidal_position(POSITIONS, 8, 10_000.0)
    assert code.shape == (2, 5, 8)
    for b, t, i in np.ndindex(2, 5, 4):
        angle = int(POSITIONS[b, t]) / 10_000 ** (2 * i / 8)
        np.testing.assert_allclose(code[b, t, [i, 4 + i]], [math.sin(angle), math.cos(angle)], atol=2e-5)


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
    np.testing.assert_allclose(alibi_slopes(heads), slopes, rtol=1e-6)
    np.testing.assert_allclose(reference.alibi_slopes(heads), slopes, rtol=1e-6)


def test_alibi_penalizes_distance() -> None:
    bias = alibi_bias(jnp.array([[4]]), jnp.array([[0, 3, 4]]), 2)
    np.testing.assert_allclose(bias[0, :, 0], [[-4 / 16, -1 / 16, 0], [-4 / 256, -1 / 256, 0]])


def test_a_learned_position_is_a_row_of_the_table() -> None:
    table = jnp.arange(12.0).reshape(6, 2)
    module = LearnedPosition(6, 2, 0.02, "float32")
    out = module.apply({"params": {"table": table}}, jnp.array([[5, 0], [2, 2]]))
    np.testing.assert_array_equal(out, table[jnp.array([[5, 0], [2, 2]])])
