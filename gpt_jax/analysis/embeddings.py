"""Nearness of meaning: which vectors of a table point the same way."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gpt_jax.config.errors import UserError


def cosine_similarity(a: Float[Array, "N C"], b: Float[Array, "M C"]) -> Float[Array, "N M"]:
    """cos of the angle between each vector of `a` and each of `b`: 1 the same direction, 0 unrelated. A zero vector's
    are 0.
    """
    return _directions(a) @ _directions(b).T


def nearest_neighbours(
    vectors: Float[Array, "N C"], table: Float[Array, "V C"], count: int
) -> tuple[Int[Array, "N count"], Float[Array, "N count"]]:
    """The `count` rows of `table` (such as `params["params"]["embedding"]["table"]`) most similar to each vector, and
    their cosines, the nearest first.

    Raises:
      ValueError: `count` is no number of rows that the table has.
    """
    if not 1 <= count <= table.shape[0]:
        raise UserError(
            f"{count} neighbours can't be had from a table of {table.shape[0]} rows: choose 1 to all of them"
        )
    cosines, ids = jax.lax.top_k(cosine_similarity(vectors, table), count)
    return ids, cosines


def _directions(vectors: Float[Array, "N C"]) -> Float[Array, "N C"]:
    vectors = vectors.astype(jnp.float32)
    lengths = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(lengths > 0, lengths, 1.0)
