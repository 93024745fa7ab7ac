"""Cosine similarity of embedding rows and the nearest of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.analysis.embeddings import cosine_similarity, nearest_neighbours


def test_cosine_is_of_the_angle_not_of_the_lengths() -> None:
    a = jnp.array([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    b = jnp.array([[9.0, 0.0], [0.0, 7.0], [-1.0, 0.0], [2.0, 2.0]])
    half = 0.5**0.5
    wanted = [[1, 0, -1, half], [half, half, -half, 1], [0, 0, 0, 0]]
    np.testing.assert_allclose(cosine_similarity(a, b), wanted, atol=1e-6)


def test_a_vector_is_nearest_to_itself_and_then_to_what_points_alike() -> None:
    table = jnp.array([[1.0, 0.0], [10.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    ids, cosines = nearest_neighbours(table[:1], table, 3)
    assert ids.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(cosines, [[1, 10 / 101**0.5, 0]], atol=1e-6)
    for count in (0, 5):
        with pytest.raises(ValueError, match="count must lie in \\[1, 4\\]"):
            nearest_neighbours(table, table, count)
