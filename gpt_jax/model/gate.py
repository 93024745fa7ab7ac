"""Gates of an attention layer: on its heads' outputs, and on the scores of what lies further back."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gpt_jax import config as cfg
from gpt_jax.model.linear import Linear
from gpt_jax.model.mixer import Mixer
from gpt_jax.model.row import Row
from gpt_jax.model.slots import LayerCache, read, write
from gpt_jax.model.taps import tap

MakeLinear = Callable[[str, int], Linear]  # name, features → the layer's product with the kernel of that name


def _elementwise(linear: MakeLinear, x: Float[Array, "B T C"], heads: int, width: int) -> Float[Array, "B T N"]:
    return jax.nn.sigmoid(linear("gate", heads * width)(x))


def _headwise(linear: MakeLinear, x: Float[Array, "B T C"], heads: int, width: int) -> Float[Array, "B T N"]:
    return jnp.repeat(jax.nn.sigmoid(linear("gate", heads)(x)), width, axis=-1)


# gate → (the layer's products, its input, H, E) → the factor of its heads' outputs, side by side (N = H·E)
OUTPUT_GATES: dict[type[cfg.GateConfig], Callable[..., Float[Array, "B T N"]]] = {
    cfg.ElementwiseGate: _elementwise,
    cfg.HeadwiseGate: _headwise,
}


def forget_sums(
    layer: Mixer, x: Float[Array, "B T C"], row: Row, cache: LayerCache | None
) -> tuple[Float[Array, "B H T"], LayerCache | None]:
    """Σ log f from the first token of its document up to each token, of a forget gate f = sigmoid(linear(x)), and the
    cache with the last of these sums (Lin et al. 2025, arXiv:2503.02130).
    """
    linear = Linear(layer.config.heads, True, layer.model.init.kernel_std, layer.model.param_dtype, name="forget")
    log_f = tap(layer, "log_decay", jax.nn.log_sigmoid(linear(x).astype(jnp.float32)).swapaxes(1, 2), heads_first=True)
    if row.segments is None:
        sums = jnp.cumsum(log_f, axis=-1)
    else:
        # Each document's sum starts anew: not even a rounding error may come from another document.
        starts = jnp.diff(row.segments, axis=-1, prepend=row.segments[:, :1]) != 0
        starts = jnp.broadcast_to(starts[:, None], log_f.shape)
        sums, _ = jax.lax.associative_scan(_add_unless_started, (log_f, starts), axis=-1)
    if (before := read(cache, "forgotten")) is not None:
        sums += before
    return sums, write(cache, forgotten=sums[:, :, -1:])


def _add_unless_started(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Adds two spans of tokens; `started` says that a document starts in a span, which hides what comes before."""
    return jnp.where(b[1], b[0], a[0] + b[0]), a[1] | b[1]
