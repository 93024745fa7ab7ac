"""Where the tokens at hand stand."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Array, Int


class Row(NamedTuple):
    """What every layer knows of the T tokens at hand.

    `steps` counts along the row from its beginning, padding included; `positions` is what position schemes see;
    `segments` separates documents; `prefix` is how many tokens of each row see one another whole; `padding` and
    `length` (the cache's room) are None without a cache. `layer` is the layer that looks, traced in a scan.
    """

    tokens: Int[Array, "B T"]
    steps: Int[Array, " T"]
    positions: Int[Array, "b T"]
    segments: Int[Array, "B T"] | None = None
    prefix: Int[Array, " B"] | None = None
    padding: Int[Array, " B"] | None = None
    length: int | None = None
    layer: Any = None

    @property
    def context(self) -> int:
        """The length that is declared: the room of the cache, or of these tokens."""
        return self.steps.shape[0] if self.length is None else self.length
