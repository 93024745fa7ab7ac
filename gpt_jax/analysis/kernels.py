"""Rooflines of what the compiler cannot see into: Pallas kernels, which it calls as custom calls without cycles."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from gpt_jax.analysis.chips import Chip
from gpt_jax.analysis.hlo import ArrayType, Op, number

# Products of T × S × D, with the width of the keys and with that of the values, in each kernel of splash attention:
# scores and values forward; scores again, the gradients of probabilities, and those of queries, or of keys and values.
SPLASH = {"fwd": (1, 1), "dq": (2, 1), "dkv": (2, 2)}


def kernel_seconds(op: Op, operands: Sequence[ArrayType], chip: Chip, visible: float) -> float:
    """The longer of its products at the peak and its arrays at the memory's bandwidth.

    The products are the kernel's own estimate if it gives one; those of splash attention follow from its shapes and
    `visible`, the share of T × S that it computes, with widths of heads filled up to those of the matrix unit.
    """
    moved = sum(array.bytes for array in (*op.types, *operands) if array.is_in_memory)
    flops = number(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', op.attributes) or splash_flops(
        op, operands, chip, visible
    )
    return max(flops / chip.flops, moved / chip.bandwidth)


def splash_flops(op: Op, operands: Sequence[ArrayType], chip: Chip, visible: float) -> float:
    """Operations of a kernel of splash attention; 0 for another kernel."""
    found = re.match(r"splash_\w+?_(fwd|dq|dkv)(?!\w*fused)", op.name)
    arrays = [array.shape for array in operands if array.dtype in ("bf16", "f32", "f16") and len(array.shape) >= 3]
    if not found or len(arrays) < 3:
        return 0.0
    # A layout with the tokens last is the second of the kernel's; it writes the numbers of its layouts into the text.
    is_last = [number(rf'"{name}_layout\\?": ?(\d)', op.attributes) == 2 for name in "qkv"]
    (*heads, queries, width), (*_, keys, _), (*_, value_width) = (
        (*shape[:-2], shape[-1], shape[-2]) if last else shape for shape, last in zip(arrays, is_last, strict=False)
    )
    by_keys, by_values = SPLASH[found[1]]
    filled = [math.ceil(size / chip.multiplier) * chip.multiplier for size in (width, value_width)]
    return 2 * math.prod(heads) * queries * keys * visible * (by_keys * filled[0] + by_values * filled[1])
