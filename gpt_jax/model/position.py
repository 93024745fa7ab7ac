"""Codes of positions, added to embeddings: learned and sinusoidal. What attention itself does with positions is in
`rope` and `bias`.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg
from gpt_jax.model.rope import plain_frequencies, turns


class LearnedPosition(nn.Module):
    """A table of vectors, one a position: position p has row p + `offset`.

    A position beyond the table is the caller's to refuse (`check_inputs`): JAX would gather NaN.
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
    """sin and cos of (position + offset) · theta^(−2i/C), or with `endpoint` theta^(−2i/(C − 2)), the sines first
    (Vaswani et al. 2017, as tensor2tensor lays them out).
    """
    # The same numbers in float32 as the models at large were trained with, whichever way they are spaced.
    frequencies = plain_frequencies(width, code.theta)
    if code.endpoint:
        frequencies = plain_frequencies(width - 2, code.theta)
        frequencies = np.append(frequencies, np.float32(1 / code.theta))
    angles = turns(positions + code.offset if code.offset else positions, frequencies)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
