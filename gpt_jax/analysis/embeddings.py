"""Similarity of embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gpt_jax.config.errors import UserError


def cosine_similarity(a: Float[Array, "N C"], b: Float[Array, "M C"]) -> Float[Array, "N M"]:
    """The cosine of the angle between each vector of `a` and each vector of `b`, in float32: 1 for the same direction,
    0 for orthogonal vectors and for zero vectors.
    """
    return _directions(a) @ _directions(b).T


def nearest_neighbours(
    vectors: Float[Array, "N C"], table: Float[Array, "V C"], count: int
) -> tuple[Int[Array, "N count"], Float[Array, "N count"]]:
    """Indices and cosines of the `count` rows of `table` (such as `params["params"]["embedding"]["table"]`) that are
    most similar to each vector, in descending order.

    Raises:
      UserError: `count` is not in [1, V].
    """
    if not 1 <= count <= table.shape[0]:
        raise UserError(f"count must lie in [1, {table.shape[0]}], the rows of the table, not {count}")
    cosines, ids = jax.lax.top_k(cosine_similarity(vectors, table), count)
    return ids, cosines


def _directions(vectors: Float[Array, "N C"]) -> Float[Array, "N C"]:
    vectors = vectors.astype(jnp.float32)
    lengths = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(lengths > 0, lengths, 1.0)
