"""How a page writes numbers: losses, differences, p-values, times, counts. "–" stands for None."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Number = float | int


def decimals(value: Number, places: int) -> str:
    """A number with thousands separated and a true minus sign."""
    text = f"{value:,.{places}f}"
    return "−" + text[1:] if text.startswith("-") and text.strip("-0.,") else text.lstrip("-")


def compact(value: Number, base: int = 10, padded: bool = False) -> str:
    """A number in few characters: 0.003, 1,024, 64 Ki, 1.2 M (`padded`, for columns: 64.0 Ki, 1.20 M)."""
    size = abs(value)
    if size < 10_000:
        return (
            decimals(value, 0)
            if value == int(value) or size >= 1000
            else f"{value:.3g}".replace("e-0", "e-").replace("-", "−")
        )
    step, names = (1024.0, ("", "Ki", "Mi", "Gi", "Ti", "Pi")) if base == 2 else (1000.0, ("", "k", "M", "G", "T", "P"))
    power = min(int(math.log(size, step)), len(names) - 1)
    digits = f"{value / step**power:{'#' if padded else ''}.3g}".removesuffix(".")
    return f"{digits} {names[power]}".replace("-", "−")


def loss(value: Number | None) -> str:
    """Nats to four decimals."""
    return "–" if value is None else decimals(value, 4)


def signed(value: Number | None) -> str:
    """A difference in nats, with its sign."""
    return "–" if value is None else f"{'+' if round(value, 4) > 0 else ''}{decimals(value, 4)}"


def p_value(p: Number | None) -> str:
    """Two digits, or "< 0.0001"."""
    return "–" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def seconds(value: Number | None) -> str:
    """A time in seconds, minutes or hours, whichever reads best."""
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def plus_minus(mean: Number | None, interval: Sequence[Number] | None, write: Callable[..., str] = loss) -> str:
    """`1.4321 ± 0.0034`: a mean and half of its (symmetric) interval."""
    if mean is None or interval is None:
        return write(mean)
    return f"{write(mean)} ± {loss((interval[1] - interval[0]) / 2)}"


def count(value: Number | None) -> str:
    """A number for a column, in few characters."""
    return "–" if value is None else compact(value, padded=True)


@dataclass(frozen=True)
class Writer:
    """How the values of one quantity are written: with so many decimals, or compactly where `places` is None."""

    places: int | None = 4

    def plain(self, value: Number | None) -> str:
        """`1.4321`."""
        if value is None:
            return "–"
        return compact(value) if self.places is None else decimals(value, self.places)

    def signed(self, value: Number | None) -> str:
        """`+0.0123`: a difference."""
        text = self.plain(value)
        return f"+{text}" if value is not None and value > 0 and text.strip("0.") else text

    def plus_minus(self, mean: Number | None, interval: Sequence[Number] | None) -> str:
        """`1.4321 ± 0.0034`: a mean and half of its (symmetric) interval."""
        if mean is None or interval is None:
            return self.plain(mean)
        return f"{self.plain(mean)} ± {self.plain((interval[1] - interval[0]) / 2)}"

    def interval(self, ends: Sequence[Number] | None) -> str:
        """`+0.0011 to +0.0135`: both ends of an interval of a difference."""
        return "–" if ends is None else f"{self.signed(ends[0])} to {self.signed(ends[1])}"


def writer(smallest: Number | None) -> Writer:
    """Decimals enough for differences of `smallest`: four for losses, none for numbers of thousands, and compact ones
    beyond.
    """
    if smallest is None or smallest <= 0:
        return Writer()
    return Writer(None if smallest >= 1e4 else min(4, max(0, 2 - math.floor(math.log10(smallest)))))
