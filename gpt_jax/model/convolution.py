"""Short causal depthwise convolutions along the row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax.model.mixer import CacheShapes
from gpt_jax.model.row import Row
from gpt_jax.model.slots import LayerCache, read, write


class ShortConvolution(nn.Module):
    """x (B, T, N) → x[t] + Σ_j taps[j] · x[t − j] for 0 ≤ j < `taps`, the identity at initialization ("Canon layers",
    Allen-Zhu 2025, ssrn:5240330).

    Padding and the tokens of other documents count as 0. `past` (B, P = taps − 1, N) holds the inputs of the P steps
    before the row; None means zeros. Returns the output, and the inputs of the last P steps.
    """

    taps: int
    param_dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T N"], row: Row, past: Float[Array, "B P N"] | None
    ) -> tuple[Float[Array, "B T N"], Float[Array, "B P N"]]:
        taps = self.param("taps", nn.initializers.zeros, (self.taps, x.shape[-1]), jnp.dtype(self.param_dtype))
        (B, T, N), before = x.shape, self.taps - 1
        new = x
        if row.padding is not None:
            new = jnp.where((row.steps >= row.padding[:, None])[..., None], x, 0)
        inputs = jnp.concatenate([jnp.zeros((B, before, N), x.dtype) if past is None else past, new], axis=1)
        y = x
        for lag, tap in enumerate(taps.astype(x.dtype)):
            earlier = inputs[:, before - lag : before - lag + T]
            if row.segments is not None and lag > 0:
                same = jnp.pad(row.segments[:, lag:] == row.segments[:, : T - lag], ((0, 0), (min(lag, T), 0)))
                earlier = jnp.where(same[..., None], earlier, 0)
            y += tap * earlier
        return y, inputs[:, T:]


def convolved(
    name: str,
    x: Float[Array, "B T N"],
    taps: int | None,
    param_dtype: str,
    row: Row,
    cache: LayerCache | None,
) -> tuple[Float[Array, "B T N"], LayerCache | None]:
    """x through the convolution `<name>_convolution` of the calling module, and the cache extended by its last inputs.

    With `taps` None, both are returned unchanged.
    """
    if taps is None:
        return x, cache
    entry = f"{name}_convolution"
    y, past = ShortConvolution(taps, param_dtype, name=entry)(x, row, read(cache, entry))
    return y, write(cache, **{entry: past})


def convolution_shapes(taps: int | None, dtype: str, **widths: int) -> CacheShapes:
    """Cache entry → shape (taps − 1, N) of the inputs that each convolution keeps; `widths` gives N by name."""
    if taps is None:
        return {}
    return {f"{name}_convolution": jax.ShapeDtypeStruct((taps - 1, N), jnp.dtype(dtype)) for name, N in widths.items()}
