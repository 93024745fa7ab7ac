"""Splash attention: JAX's Pallas kernel for TPUs, which keeps scores in fast memory and skips masked blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import splash_attention as pallas
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg
from gpt_jax.config.mesh import ROWS, TENSOR
from gpt_jax.model.placement import axes_of, axis_size

LANES = 128  # T must be a multiple of the vector width
BLOCKS = (512, 256, LANES)
LAYOUT = pallas.QKVLayout.SEQ_MINOR  # heads of 64 would be padded to 128 lanes, and transposed by copies
SAVED = "attention"  # the name under which `remat` may save what the kernel's backward pass reads of the forward one


def why_not(
    tokens: int,
    keys: int,
    mask: cfg.MaskConfig,
    normalizer: str,
    *,
    is_biased: bool,
    is_watched: bool,
) -> str | None:
    """The reason why the kernel cannot compute this attention, as a clause that follows its name; None: it can.

    `is_biased`: the scores are changed other than by scale, mask and softcap. `is_watched`: dropout or a tap needs the
    probabilities.
    """
    if tokens != keys:
        return "attends within whole rows only, and reads no cache"
    if not isinstance(mask, cfg.Causal | cfg.Window):
        return f"supports causal masks and windows only, not {type(mask).__name__}"
    if normalizer != "softmax":
        return f"supports softmax only, not {normalizer}"
    if is_biased:
        return "cannot add a bias to the scores"
    if is_watched:
        return "never stores the probabilities, which dropout and taps need"
    if tokens % LANES:
        return f"needs rows of a multiple of {LANES} tokens, not {tokens}"
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
    """Causal softmax attention within whole rows: (B, H, T, D) scaled queries → (B, H, T, E).

    With a `window` of W, a query sees W keys including its own position. On platforms other than TPU the kernel is
    interpreted, which is correct but very slow.
    """
    (_, H, T, _) = query.shape
    mask = pallas.CausalMask((T, T)) if window is None else pallas.LocalMask((T, T), (window - 1, 0), 0)
    size = next(block for block in BLOCKS if T % block == 0)
    make = partial(
        pallas.make_splash_mha_single_device,
        block_sizes=pallas.BlockSizes(
            block_q=size,
            block_kv=size,
            block_q_dkv=size,
            block_kv_dkv=size,
            block_q_dq=size,
            block_kv_dq=size,
            q_layout=LAYOUT,
            k_layout=LAYOUT,
            v_layout=LAYOUT,
        ),
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=SAVED,
    )

    def attend(interpret: bool, *operands: Any) -> Array:
        """Attention of the rows and heads on one device."""
        with jax.ensure_compile_time_eval():
            kernel = make(mask=pallas.MultiHeadMask([mask] * operands[0].shape[1]), interpret=interpret)
        *heads, segments, sinks = operands
        ids = None if segments is None else pallas.SegmentIds(segments, segments)
        return jax.vmap(kernel, in_axes=(0, 0, 0, 0, None))(*heads, ids, sinks)

    def choose(*operands: Any) -> Array:
        # Chosen at lowering, so that a program compiled for a TPU on another machine contains the kernel itself.
        return lax.platform_dependent(*operands, tpu=partial(attend, False), default=partial(attend, True))

    axes = axes_of(*ROWS, TENSOR)
    if axes:  # XLA cannot partition a Pallas kernel by itself
        rows = axes_of(*ROWS) if query.shape[0] % axis_size(*ROWS) == 0 else None
        heads = axes_of(TENSOR) if H % axis_size(TENSOR) == key.shape[1] % axis_size(TENSOR) == 0 else None
        whole, row, head = PartitionSpec(rows, heads), PartitionSpec(rows), PartitionSpec(heads)
        specs = (whole, whole, whole, row, head)
        choose = jax.shard_map(choose, in_specs=specs, out_specs=whole, axis_names=set(axes), check_vma=False)
    query, key, value = (checkpoint_name(x, SAVED) for x in (query, key, value))
    return choose(query, key, value, segments, sinks).astype(value.dtype)
