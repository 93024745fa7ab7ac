"""A short causal convolution along the row: each channel by itself, a few steps back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax.model.mixer import CacheShapes
from gpt_jax.model.row import Row
from gpt_jax.model.slots import LayerCache, read, write


class ShortConvolution(nn.Module):
    """x[t] + Σ_j taps[j] · x[t − j] for j < `taps`, the identity at the start ("Canon layers", Allen-Zhu 2025,
    ssrn:5240330).

    Padding and other documents count as 0. With a cache, `past` (B, taps − 1, N) holds the inputs of the last steps,
    and comes back with those of the steps at hand.
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
    """x through the convolution `<name>_convolution` of the calling module, and the cache with the inputs that the
    convolution will look back on. With `taps` None both are returned unchanged.
    """
    if taps is None:
        return x, cache
    place = f"{name}_convolution"
    y, past = ShortConvolution(taps, param_dtype, name=place)(x, row, read(cache, place))
    return y, write(cache, **{place: past})


def convolution_shapes(taps: int | None, dtype: str, **widths: int) -> CacheShapes:
    """What the convolutions on inputs of these widths look back on, by the name in a cache."""
    if taps is None:
        return {}
    return {f"{name}_convolution": jax.ShapeDtypeStruct((taps - 1, N), jnp.dtype(dtype)) for name, N in widths.items()}
