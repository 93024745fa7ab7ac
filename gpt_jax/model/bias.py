"""What position schemes add to attention's scores: ALiBi's penalties and T5's learned biases. A scheme is one row of
`BIASES`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg
from gpt_jax.config.variant import implementation


def position_bias(
    position: cfg.PositionConfig | None,
    table: Float[Array, "buckets H"] | None,
    query_positions: Int[Array, "b T"],
    key_positions: Int[Array, "b S"],
    heads: int,
) -> Float[Array, "b H T S"] | None:
    """What is added to the score of each query and key, in float32; None with a scheme that adds nothing.

    `table` holds the parameters of a learned scheme. The result has no meaning for keys that the mask hides.

    Raises:
      ConfigError: the scheme has no row in `BIASES`.
    """
    if position is None or (bias := implementation(BIASES, position)) is None:
        return None
    return bias(position, table, query_positions, key_positions, heads)


def adds(position: cfg.PositionConfig | None) -> bool:
    """Whether the scheme adds anything to scores."""
    return position is not None and implementation(BIASES, position) is not None


def alibi_slopes(alibi: cfg.Alibi, heads: int) -> Float[np.ndarray, " H"]:
    """Geometric slopes 2^(−bias_max · h/H), times `scale`. Where H is not a power of two: the slopes of the next lower
    power, then every other slope of the next higher one.
    """
    below = 2 ** math.floor(math.log2(heads))
    steps = np.concatenate([np.arange(1, below + 1), np.arange(1, 2 * (heads - below), 2) / 2]) / below
    return (alibi.scale * 2.0 ** (-alibi.bias_max * steps)).astype(np.float32)


def relative_buckets(distance: Int[Array, "*shape"], buckets: int, max_distance: int) -> Int[Array, "*shape"]:
    """The T5 bucket of a key `distance` behind its query; a key ahead of it (in a prefix) counts as distance 0."""
    return jnp.asarray(_buckets(buckets, max_distance))[jnp.clip(distance, 0, max_distance)]


def _buckets(buckets: int, max_distance: int) -> Int[np.ndarray, " distances"]:
    """The bucket of each distance up to `max_distance`, which is the first distance in the last bucket."""
    exact, distance = buckets // 2, np.arange(max_distance + 1)
    share = np.log(np.maximum(distance, exact) / exact) / math.log(max_distance / exact)
    far = exact + np.floor(share * (buckets - exact) + 1e-9)  # a range that begins at a whole distance includes it
    return np.where(distance < exact, distance, np.minimum(far, buckets - 1)).astype(np.int32)


def _alibi(
    c: cfg.Alibi, table: None, queries: Int[Array, "b T"], keys: Int[Array, "b S"], heads: int
) -> Float[Array, "b H T S"]:
    """−slope · |distance|: in a prefix keys ahead of the query count like keys behind it."""
    slopes = alibi_slopes(c, heads)[:, None, None]
    if not c.rounded:
        return jnp.asarray(-slopes) * jnp.abs(_distance(queries, keys))[:, None].astype(jnp.float32)
    unscaled = alibi_slopes(dataclasses.replace(c, scale=1.0), heads)[:, None]

    def place(positions: Int[Array, "b N"]) -> Float[Array, "b H N"]:
        # XLA may skip a conversion to bfloat16 and back; it may not skip `reduce_precision`.
        at, slope = _bfloat16(positions.astype(jnp.float32))[:, None], _bfloat16(jnp.asarray(unscaled))
        return _bfloat16(slope * at)

    return -c.scale * jnp.abs(place(queries)[..., None] - place(keys)[:, :, None])


def _bfloat16(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """To the nearest bfloat16, kept in float32."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _distance(queries: Int[Array, "b T"], keys: Int[Array, "b S"]) -> Int[Array, "b T S"]:
    """How far each key is behind each query."""
    return queries[:, :, None] - keys[:, None, :]


def _t5(
    c: cfg.T5Bias, table: Float[Array, "buckets H"], queries: Int[Array, "b T"], keys: Int[Array, "b S"], heads: int
) -> Float[Array, "b H T S"]:
    """The table's row for each pair's bucket: first the bias of every distance, then one of them for each pair."""
    of_distance = table.astype(jnp.float32).T[:, _buckets(c.buckets, c.max_distance)]
    return jnp.moveaxis(of_distance[:, jnp.clip(_distance(queries, keys), 0, c.max_distance)], 0, 1)


# scheme, its table, positions of queries and keys, H → the bias; a row of None: the scheme acts elsewhere
Bias = Callable[[Any, Any, Int[Array, "b T"], Int[Array, "b S"], int], Float[Array, "b H T S"]]
BIASES: dict[type[cfg.PositionConfig], Bias | None] = {cfg.Rope: None, cfg.Alibi: _alibi, cfg.T5Bias: _t5}
