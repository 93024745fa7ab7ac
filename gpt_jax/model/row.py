"""Where the tokens at hand stand."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Int


class Row(NamedTuple):
    """What every layer knows of the T tokens at hand.

    `steps` counts along the row from its beginning, padding included; `positions` is what position schemes see;
    `segments` separates documents; `padding` and `length` are the cache's, None without one.
    """

    steps: Int[Array, " T"]
    positions: Int[Array, "b T"]
    segments: Int[Array, "B T"] | None = None
    padding: Int[Array, " B"] | None = None
    length: int | None = None
