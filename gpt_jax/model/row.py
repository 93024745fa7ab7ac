"""The tokens of one call and where they stand in their rows: what every layer gets beside x."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Array, Int


class Row(NamedTuple):
    """The T tokens of a call.

    `steps` (T,) counts along the row from its beginning, left padding included. `positions` (b, T) is what position
    schemes use; b is 1 if all rows agree. `segments` (B, T) numbers the documents, `prefix` (B,) counts the tokens that
    attend to one another. `padding` (B,), the tokens of left padding, and `length`, the capacity of the cache, are None
    without a cache. `layer` is the index of the current layer, traced in a scan.
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
        """The declared length of a row: the capacity of the cache, or T without one."""
        return self.steps.shape[0] if self.length is None else self.length
