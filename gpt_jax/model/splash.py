"""Splash attention: JAX's own Pallas kernel for TPUs, which keeps scores in fast memory and skips hidden blocks."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.experimental.pallas.ops.tpu import splash_attention as pallas
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg

LANES = 128  # the kernel's rows come in whole vectors
BLOCKS = (512, 256, LANES)


def why_not(
    tokens: int,
    keys: int,
    mask: cfg.MaskConfig,
    normalizer: str,
    *,
    is_biased: bool,
    is_watched: bool,
) -> str | None:
    """Why the kernel can't do this, as a clause that follows its name; None: it can.

    `is_biased`: something is added to the scores, or turns them other than by a softcap. `is_watched`: somebody wants
    the probabilities, dropout or a tap.
    """
    if tokens != keys:
        return "attends within a whole row, and reads no cache"
    if not isinstance(mask, cfg.Causal | cfg.Window):
        return f"knows causal masks and windows, and no {type(mask).__name__}"
    if normalizer != "softmax":
        return f"has a softmax, and no {normalizer}"
    if is_biased:
        return "adds nothing to the scores"
    if is_watched:
        return "never has the probabilities as a whole, which dropout and taps ask for"
    if tokens % LANES:
        return f"takes rows of a multiple of {LANES} tokens, and {tokens} is none"
    return None


def splash_attention(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B K T D"],
    value: Float[Array, "B K T E"],
    *,
    segments: Int[Array, "B T"] | None,
    window: int | None,
    softcap: float | None,
    sinks: Float[Array, " H"] | None,
) -> Float[Array, "B H T E"]:
    """Causal softmax attention of whole rows; `query` comes scaled already, and in a `window` a query sees that many
    keys, its own included.

    Where the program runs on anything but a TPU the kernel is interpreted: right, and very slow.
    """
    _, H, T, _ = query.shape
    mask = pallas.CausalMask((T, T)) if window is None else pallas.LocalMask((T, T), (window - 1, 0), 0)
    size = next(block for block in BLOCKS if T % block == 0)
    make = partial(
        pallas.make_splash_mha_single_device,
        pallas.MultiHeadMask([mask] * H),
        block_sizes=pallas.BlockSizes(
            block_q=size,
            block_kv=size,
            block_q_dkv=size,
            block_kv_dkv=size,
            block_q_dq=size,
            block_kv_dq=size,
        ),
        attn_logits_soft_cap=softcap,
    )

    def attend(interpret: bool, *operands: Any) -> Array:
        """Of the rows that one device has."""
        with jax.ensure_compile_time_eval():
            kernel = make(interpret=interpret)
        *heads, segments, sinks = operands
        ids = None if segments is None else pallas.SegmentIds(segments, segments)
        return jax.vmap(kernel, in_axes=(0, 0, 0, 0, None))(*heads, ids, sinks)

    def choose(*operands: Any) -> Array:
        # Chosen when the program is lowered, so that one compiled on another machine for a TPU has the kernel itself.
        return lax.platform_dependent(*operands, tpu=partial(attend, False), default=partial(attend, True))

    rows = _rows(query.shape[0])
    if rows is not None:
        specs = (rows, rows, rows, rows, PartitionSpec())
        choose = jax.shard_map(choose, in_specs=specs, out_specs=rows, check_vma=False)
    return choose(query, key, value, segments, sinks).astype(value.dtype)


def _rows(batch: int) -> PartitionSpec | None:
    """How the rows are divided over the mesh that the program is traced under; None: there is none.

    XLA can't divide a Pallas kernel by itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind is not AxisType.Manual)
    if not axes:
        return None
    return PartitionSpec(axes) if batch % math.prod(mesh.shape[axis] for axis in axes) == 0 else PartitionSpec()
