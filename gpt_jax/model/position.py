"""Position codes that are added to the embedding: learned and sinusoidal. Position schemes within attention are in
`rope` and `bias`.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg
from gpt_jax.model.rope import plain_frequencies, rotation_angles


class LearnedPosition(nn.Module):
    """positions (b, T) → rows p + `offset` of a learned table, (b, T, C).

    The caller must refuse positions beyond the table (`check_inputs`): JAX would silently gather NaN.
    """

    length: int
    width: int
    std: float
    param_dtype: str
    offset: int

    @nn.compact
    def __call__(self, positions: Int[Array, "b T"]) -> Float[Array, "b T C"]:
        shape = (self.length + self.offset, self.width)
        table = self.param("table", nn.initializers.normal(self.std), shape, jnp.dtype(self.param_dtype))
        return jnp.take(table, positions + self.offset if self.offset else positions, axis=0)


def sinusoidal_position(positions: Int[Array, "b T"], width: int, code: cfg.Sinusoidal) -> Float[Array, "b T C"]:
    """sin, then cos, of (position + offset) · theta^(−2i/C), or theta^(−2i/(C − 2)) with `endpoint` (Vaswani et al.
    2017, in the layout of tensor2tensor): (b, T, C) in float32.
    """
    # Computed in float32 as the published models did, so that the frequencies agree to the last bit.
    frequencies = plain_frequencies(width, code.theta)
    if code.endpoint:
        frequencies = plain_frequencies(width - 2, code.theta)
        frequencies = np.append(frequencies, np.float32(1 / code.theta))
    angles = rotation_angles(positions + code.offset if code.offset else positions, frequencies)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
