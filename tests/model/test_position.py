"""Absolute position codes against their formulas."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.config import Learned, Sinusoidal
from gpt_jax.config.errors import ConfigError
from gpt_jax.model.position import LearnedPosition, sinusoidal_position

POSITIONS = jnp.array([[0, 1, 2, 3, 4], [7, 0, 1, 100, 2]])


def test_sinusoidal_position_is_vaswanis_formula() -> None:
    code = sinusoidal_position(POSITIONS, 8, Sinusoidal())
    assert code.shape == (2, 5, 8)
    for b, t, i in np.ndindex(2, 5, 4):
        angle = int(POSITIONS[b, t]) / 10_000 ** (2 * i / 8)
        np.testing.assert_allclose(code[b, t, [i, 4 + i]], [math.sin(angle), math.cos(angle)], atol=2e-5)


def test_with_an_endpoint_the_last_pair_turns_by_1_over_theta_and_an_offset_moves_position_0() -> None:
    code = sinusoidal_position(POSITIONS, 8, Sinusoidal(theta=1000.0, endpoint=True, offset=2))
    for b, t, i in np.ndindex(2, 5, 4):
        angle = (int(POSITIONS[b, t]) + 2) / [1, 10, 100, 1000][i]
        np.testing.assert_allclose(code[b, t, [i, 4 + i]], [math.sin(angle), math.cos(angle)], atol=2e-5)


def test_a_learned_position_is_a_row_of_the_table() -> None:
    table = jnp.arange(12.0).reshape(6, 2)
    module = LearnedPosition(6, 2, 0.02, "float32", 0)
    out = module.apply({"params": {"table": table}}, jnp.array([[5, 0], [2, 2]]))
    np.testing.assert_array_equal(out, table[jnp.array([[5, 0], [2, 2]])])


def test_a_learned_positions_offset_is_the_row_of_position_0() -> None:
    table = jnp.arange(16.0).reshape(8, 2)
    module = LearnedPosition(6, 2, 0.02, "float32", offset=2)
    out = module.apply({"params": {"table": table}}, jnp.array([[5, 0]]))
    np.testing.assert_array_equal(out, table[jnp.array([[7, 2]])])


def test_a_negative_offset_is_refused() -> None:
    with pytest.raises(ConfigError, match="offset must be 0 or more, not -1"):
        Learned(offset=-1)
    with pytest.raises(ConfigError, match="offset must be 0 or more, not -1"):
        Sinusoidal(offset=-1)
