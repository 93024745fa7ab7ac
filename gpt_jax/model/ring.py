"""Attention within rows whose positions are divided over devices, by the axis `sequence` of the mesh in context.

Each device holds the queries, keys and values of one part of each row. The queries stay; the keys and values, with
their steps, positions and segments, travel from device to device, and each device adds what it can see of them to its
online softmax (ring attention: Liu et al. 2023, arXiv:2310.01889). No device ever holds the keys of a whole row.

- Under a causal mask the device of the first part would be idle most of the time. For the time of the ring, a row is
  therefore cut into twice as many parts as devices, and device d holds the parts d and 2s − 1 − d, an early and a late
  one (zig-zag, as in Megatron's context parallelism): in each of the s steps of the ring, all devices compute equally
  much. Bringing the parts there and back sends queries, keys, values and outputs once.
- A mask that reaches back W tokens needs only the W − 1 tokens before each part, which the device's neighbours send.
  Their work is equal as it is, so that nothing else moves.

The backward pass recomputes the scores tile by tile, as `chunked.py` does. Keys travel once more, and their gradients
with them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from gpt_jax.config.mesh import AXES, ROWS, SEQUENCE, TENSOR, check_positions
from gpt_jax.model.blocked import (
    LOWEST,
    Adjust,
    Operands,
    Tiling,
    by_tiles,
    floats,
    gradients_by_tiles,
    merged,
    zeros_of,
)
from gpt_jax.model.exchange import from_zigzag, sent, to_zigzag, with_halo
from gpt_jax.model.mask import Side
from gpt_jax.model.placement import axes_of, axis_size
from gpt_jax.model.splash import SAVED
from gpt_jax.model.tiles import cut, padded

TILE = 512  # most queries, and keys, whose scores exist at once

Rows = tuple[Any, ...]  # query, queries; in the backward pass also what the gradient needs
Columns = tuple[Any, ...]  # key, value, keys


class Ring(NamedTuple):
    """What is static in the compiled program. `reach` is None too where a query may see later keys."""

    size: int  # devices that share a row
    adjust: Adjust
    normalizer: str
    reach: int | None
    is_causal: bool
    rows: tuple[str, ...] | None  # the axes that divide rows
    heads: str | None  # and heads

    def is_local(self, part: int) -> bool:
        """Whether devices with `part` tokens each get keys from a few neighbours only; otherwise, keys of all devices
        go all the way round.
        """
        return self.reach is not None and (self.reach - 1 <= part or self.reach - 1 <= part * (self.size - 2))

    def specs(self, operands: Operands) -> Operands:
        """How each operand lies on the mesh: rows, heads and positions divided."""
        B, tensor = operands.query.shape[0], PartitionSpec(self.rows, self.heads, SEQUENCE)

        def side(x: Side) -> Any:
            positions = PartitionSpec(self.rows if x.positions.shape[0] == B else None, SEQUENCE)
            every = Side(PartitionSpec(SEQUENCE), positions, PartitionSpec(self.rows, SEQUENCE), tensor)  # type: ignore[arg-type]
            return _present(every, x)

        def of_param(x: Array) -> PartitionSpec:
            return PartitionSpec() if jnp.issubdtype(x.dtype, jnp.floating) else PartitionSpec(self.rows)

        sinks: Any = None if operands.sinks is None else PartitionSpec(self.heads)
        params = jax.tree.map(of_param, operands.params)
        return Operands(tensor, tensor, tensor, side(operands.queries), side(operands.keys), params, sinks)  # type: ignore[arg-type]


def ring_attention(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B K T D"],
    value: Float[Array, "B K T E"],
    queries: Side,
    keys: Side,
    adjust: Adjust,
    params: Any,
    *,
    sinks: Float[Array, " H"] | None,
    normalizer: str,
    reach: int | None,
    is_causal: bool,
    knows_heads: bool,
) -> Float[Array, "B H T E"]:
    """Softmax or sigmoid attention of whole rows, arguments as `chunked_attention`, on a mesh with the axis `sequence`.

    Integers among `params` are one a row. `is_causal` False: a query may see later keys. `knows_heads`: `adjust`
    depends on which head it is given, so that each device of the axis `tensor` computes all heads.

    Raises:
      ConfigError: T is no multiple of twice the size of the axis.
    """
    size = axis_size(SEQUENCE)
    check_positions(query.shape[2], size)
    (B, H), K = query.shape[:2], key.shape[1]
    rows, tensor = axes_of(*ROWS), axis_size(TENSOR)
    divides_heads = H % tensor == 0 and not knows_heads and (K % tensor == 0 or tensor % K == 0)
    if divides_heads and K % tensor:  # each device gets a copy of the one key head that its query heads share
        key, value = (jnp.repeat(x, tensor // K, axis=1) for x in (key, value))
    ring = Ring(
        size,
        adjust,
        normalizer,
        reach if is_causal else None,
        is_causal,
        rows if B % axis_size(*ROWS) == 0 else None,
        TENSOR if divides_heads and tensor > 1 else None,
    )
    return _attend(ring, Operands(query, key, value, queries, keys, jax.tree.map(jnp.asarray, params), sinks))


# ── differentiation: around the programs of the single devices, not through them ─────────────────────────────────────


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(ring: Ring, operands: Operands) -> Float[Array, "B H T E"]:
    return _forward(ring, operands)[0]


def _forward(ring: Ring, operands: Operands) -> tuple[Array, Any]:
    specs = ring.specs(operands)
    found = _on_mesh(ring, _on_device, (specs,), (specs.query,) * 2)(operands)
    out, log_sums = (checkpoint_name(x, SAVED) for x in found)
    return out, (operands, out, log_sums)


def _backward(ring: Ring, saved: Any, gradient: Float[Array, "B H T E"]) -> tuple[Operands]:
    operands, out, log_sums = jax.tree.map(jnp.asarray, saved)
    specs = ring.specs(operands)
    ins, outs = (specs, *(specs.query,) * 3), _present(specs, floats(operands))
    return (_on_mesh(ring, _gradients_on_device, ins, outs)(operands, out, log_sums, gradient),)


_attend.defvjp(_forward, _backward)


def _on_mesh(ring: Ring, function: Any, ins: Any, outs: Any) -> Any:
    # Nothing is differentiated through it, for which `check_vma` would be needed.
    axes = set(axes_of(*AXES))
    return jax.shard_map(partial(function, ring), in_specs=ins, out_specs=outs, axis_names=axes, check_vma=False)


def _present(specs: Any, tree: Any) -> Any:
    """`specs` with None where the tree has None."""
    return jax.tree.map(lambda x, spec: None if x is None else spec, tree, specs, is_leaf=lambda x: x is None)


# ── one device ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _on_device(ring: Ring, operands: Operands) -> tuple[Array, Array]:
    """The outputs of a device's queries, and the logarithms of their denominators (B, H, T, 1)."""
    query, key, value, queries, keys, params, sinks = operands
    rows, columns = (query, queries), (key, value, keys)
    if ring.is_local(query.shape[2]):
        out, log_sums = _block(ring, params, rows, _with_halo(ring, columns))
    else:
        out, log_sums = _around(ring, params, rows, columns)
    if sinks is not None:
        whole = jnp.logaddexp(log_sums, sinks.astype(jnp.float32)[:, None, None])
        out, log_sums = out * jnp.exp(log_sums - whole), whole
    return out.astype(value.dtype), log_sums


def _gradients_on_device(
    ring: Ring, operands: Operands, out: Array, log_sums: Array, gradient: Float[Array, "B H T E"]
) -> Operands:
    """The gradients of a device's part of the operands; those of `params` and `sinks` are summed over devices."""
    query, key, value, queries, keys, params, sinks = operands
    products = jnp.sum(gradient.astype(jnp.float32) * out, axis=-1, keepdims=True)
    rows, columns = (query, gradient, products, log_sums, queries), (key, value, keys)
    if ring.is_local(query.shape[2]):
        of_rows, of_columns, of_params = _block_gradients(ring, params, rows, _with_halo(ring, columns))
        (of_columns,) = jax.linear_transpose(partial(_halo, ring), zeros_of(columns))(of_columns)
    else:
        of_rows, of_columns, of_params = _gradients_around(ring, params, rows, columns)
    of_sinks = None if sinks is None else -jnp.sum(jnp.exp(sinks[:, None, None] - log_sums) * products, axis=(0, 2, 3))
    of_params, of_sinks = lax.psum((of_params, of_sinks), (SEQUENCE, *(ring.rows or ())))
    (of_query, of_queries), (of_key, of_value, of_keys) = of_rows, of_columns
    sums = Operands(of_query, of_key, of_value, of_queries, of_keys, of_params, of_sinks)
    return jax.tree.map(lambda total, x: total.astype(x.dtype), sums, floats(operands))


def _block(ring: Ring, params: Any, rows: Rows, columns: Columns) -> tuple[Array, Array]:
    """Outputs of the queries over these keys alone, and logarithms of the denominators (B, H, T, 1), in float32."""
    T, tiling, (query, queries), (key, value, keys), offset = _tiled(ring, rows, columns)
    out, log_sums = by_tiles(tiling, Operands(query, key, value, queries, keys, params, None), offset)
    return out[:, :, :T], log_sums[:, :, :T, None]


def _block_gradients(ring: Ring, params: Any, rows: Rows, columns: Columns) -> tuple[Any, Any, Any]:
    """What these keys add to the gradients of (query, queries), and the gradients of the columns and of `params`."""
    T, tiling, (query, *given, queries), (key, value, keys), offset = _tiled(ring, rows, columns)
    sums = gradients_by_tiles(tiling, Operands(query, key, value, queries, keys, params, None), offset, *given)
    of_rows = cut((sums.query, sums.queries), 0, T)
    of_columns = cut((sums.key, sums.value, sums.keys), 0, tiling.length)
    return of_rows, of_columns, sums.params


def _tiled(ring: Ring, rows: Rows, columns: Columns) -> tuple[int, Tiling, Rows, Columns, Int[Array, ""]]:
    """The number of queries, the tiling, rows and columns in whole tiles, and the first query's step less the first
    key's. The tokens of either side have consecutive steps.
    """
    T, S = rows[0].shape[2], columns[0].shape[2]
    tiling = Tiling(ring.adjust, ring.normalizer, ring.reach, min(TILE, T), min(TILE, S), S)
    offset = rows[-1].steps[0] - columns[2].steps[0] if ring.is_causal else jnp.asarray(S, jnp.int32)
    return T, tiling, padded(rows, tiling.query_block), padded(columns, tiling.key_block), offset


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _with_halo(ring: Ring, columns: Columns) -> Columns:
    """The columns of a device, after those before them that its queries may see. Tokens before the beginning of the row
    have negative steps, which no query sees.
    """
    key, value, keys = _halo(ring, columns)
    before = key.shape[2] - columns[0].shape[2]
    return key, value, keys._replace(steps=columns[2].steps[0] - before + jnp.arange(key.shape[2], dtype=jnp.int32))


def _halo(ring: Ring, columns: Columns) -> Columns:
    assert ring.reach is not None
    return with_halo(ring.size, columns, ring.reach - 1)


# ── the ring ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _around(ring: Ring, params: Any, rows: Rows, columns: Columns) -> tuple[Array, Array]:
    """As `_block`, over the keys of all devices."""
    rows, columns = to_zigzag(ring.size, rows), to_zigzag(ring.size, columns)
    shape = rows[0].shape[:-1]
    start = jnp.zeros((*shape, columns[1].shape[-1])), jnp.full((*shape, 1), LOWEST)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        columns, sums = carry

        def visit(sums: Any, pair: Array) -> tuple[Any, None]:
            i, j = pair
            found = _block(ring, params, _at(rows, i), _at(columns, j))
            return jax.tree.map(
                lambda x, new: x.at[i].set(new), sums, merged(ring.normalizer, _at(sums, i), found)
            ), None

        # The last of the steps brings the keys home: a loop with one step less would be compiled twice.
        return (sent(ring.size, columns, 1), lax.scan(visit, sums, _pairs(ring))[0]), None

    (_, sums), _ = lax.scan(step, (columns, start), None, length=ring.size)
    out, log_sums = from_zigzag(ring.size, sums)
    return out, log_sums


def _gradients_around(ring: Ring, params: Any, rows: Rows, columns: Columns) -> tuple[Any, Any, Any]:
    """As `_block_gradients`, over the keys of all devices. The sums of the keys' gradients travel with the keys."""
    rows, columns = to_zigzag(ring.size, rows), to_zigzag(ring.size, columns)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        columns, of_columns, rest = carry

        def visit(sums: Any, pair: Array) -> tuple[Any, None]:
            i, j = pair
            of_rows, of_columns, of_params = sums
            new = _block_gradients(ring, params, _at(rows, i), _at(columns, j))
            add = lambda at: lambda x, new: x.at[at].add(new)  # noqa: E731
            of_rows, of_columns = jax.tree.map(add(i), of_rows, new[0]), jax.tree.map(add(j), of_columns, new[1])
            return (of_rows, of_columns, jax.tree.map(jnp.add, of_params, new[2])), None

        of_rows, of_params = rest
        (of_rows, of_columns, of_params), _ = lax.scan(visit, (of_rows, of_columns, of_params), _pairs(ring))
        return (*sent(ring.size, (columns, of_columns), 1), (of_rows, of_params)), None

    start = columns, zeros_of(columns), (zeros_of((rows[0], rows[-1])), zeros_of(params))
    (_, of_columns, (of_rows, of_params)), _ = lax.scan(step, start, None, length=ring.size)
    return from_zigzag(ring.size, of_rows), from_zigzag(ring.size, of_columns), of_params


def _pairs(ring: Ring) -> Int[Array, "n 2"]:
    """The halves of queries and keys that meet. Under a causal mask no early half ever sees a late one."""
    return jnp.array([(0, 0), (1, 0), (1, 1), *([] if ring.is_causal else [(0, 1)])])


def _at(tree: Any, i: Int[Array, ""]) -> Any:
    return jax.tree.map(lambda x: x[i], tree)
