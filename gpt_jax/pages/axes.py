"""Axes of a chart: scales with round ticks, labels that don't overlap, and marks, all as strings of SVG.

Lengths are CSS pixels. Colours are CSS classes, `base` for the reference series and `c0`, `c1` … for the others; the
page's style sheet gives them a value in light and in dark.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from gpt_jax.pages.numbers import Number, compact, decimals

COLOURS = 6
DASHES = ("", "7 3", "2 3", "9 3 2 3")
LINE = 14.0  # the height of a line, in pixels
TICK_LENGTH, LABEL_SPACING = 4.0, 34.0


def style(index: int | None) -> str:
    """The CSS class of a series' colour: None is the reference series."""
    return "base" if index is None else f"c{index % COLOURS}"


def dash(index: int | None) -> str:
    """The dash attribute of a series' line: series of one colour have different dashes."""
    pattern = "" if index is None else DASHES[index // COLOURS % len(DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def width_of(text: str) -> float:
    """The approximate width of a text of 12 pixels, in a broad typeface."""
    return sum(_character(c) for c in text)


def _character(c: str) -> float:
    if unicodedata.east_asian_width(c) in "WF":
        return 12.5
    return 12.0 if c in "MWmw@%" else 8.6 if c.isupper() else 6.9


def shorten(text: str, pixels: Number) -> str:
    """`text`, cut to fit into `pixels` and ended by an ellipsis if it was cut."""
    if width_of(text) <= pixels:
        return text
    ends = [n for n in range(len(text), 1, -1) if width_of(text[:n]) + 12 <= pixels]
    return text[: ends[0] if ends else 1].rstrip() + "…"


@dataclass(frozen=True)
class Scale:
    """Numbers from `low` to `high` onto pixels from `start` to `end`; `log` is a logarithm's base, None for linear."""

    low: Number
    high: Number
    start: Number
    end: Number
    log: int | None = None

    def __call__(self, value: Number) -> float:
        return self.places([value])[0]

    def places(self, values: Sequence[Number]) -> list[float]:
        """Where the values lie, in pixels."""
        low, high = self.low, self.high
        if self.log is not None:
            values = [math.log(max(v, low * 1e-9)) for v in values]
            low, high = math.log(low), math.log(high)
        return [self.start + (self.end - self.start) * (v - low) / (high - low) for v in values]

    def ticks(self, spacing: Number) -> list[tuple[Number, str]]:
        """Round values at least about `spacing` pixels apart, with their labels."""
        room = max(2, int(abs(self.end - self.start) / spacing))
        if self.log is None:
            return self._linear(room)
        base = float(self.log)
        first, last = math.floor(math.log(self.low, base) + 1e-9), math.ceil(math.log(self.high, base) - 1e-9)
        values: list[float] = []
        for multiples in ((1, 2, 5), (1, 3), (1,)) if self.log == 10 else ((1,),):
            values = [m * base**power for power in range(first, last + 1) for m in multiples]
            values = [v for v in values if self.low * 0.999 <= v <= self.high * 1.001]
            if len(values) <= room:
                break
        values = values[:: math.ceil(len(values) / room)] if values else []
        if len(values) < 2:
            return self._linear(room)
        return [(value, compact(value, self.log)) for value in values]

    def _linear(self, room: int) -> list[tuple[Number, str]]:
        values: list[float] = []
        while len(values) < 2:
            rough = (self.high - self.low) / room
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            values = [step * i for i in range(first, last + 1)]
            room += 1
        places = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(v, decimals(v, places) if abs(v) < 10_000 else compact(v)) for v in values]


def scale(values: Iterable[Number], start: Number, end: Number, log: int | None = None, pad: Number = 0.05) -> Scale:
    """A scale over all the values, with a margin of `pad` at both ends."""
    found = [v for v in values if math.isfinite(v) and (log is None or v > 0)]
    low, high = (min(found), max(found)) if found else (1.0, 2.0)
    if log is not None:
        factor = (high / low) ** pad if high > low else 2.0
        return Scale(low / factor, high * factor, start, end, log)
    air = (high - low) * pad if high > low else max(abs(high) * 0.05, 1e-3)
    return Scale(low - air, high + air, start, end)


def spread(wanted: Sequence[Number], gap: Number, low: Number, high: Number) -> list[float]:
    """Positions at least `gap` apart and, if there is room, within [low, high], each as close as possible to the wanted
    one.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[tuple[float, int]] = []  # (centre, members), merged while they overlap
    for i in order:
        centre, size = wanted[i], 1
        while True:
            half = gap * (size - 1) / 2
            centre = max(low + half, min(high - half, centre))
            if not groups or centre - half >= groups[-1][0] + gap * (groups[-1][1] - 1) / 2 + gap - 1e-9:
                break
            other, members = groups.pop()
            centre = (centre * size + other * members) / (size + members)
            size += members
        groups.append((centre, size))
    placed = [centre + gap * (j - (size - 1) / 2) for centre, size in groups for j in range(size)]
    result = [0.0] * len(wanted)
    for i, place in zip(order, placed, strict=True):
        result[i] = place
    return result


def mark(x: Number, y: Number, index: int | None, tip: str, size: Number = 4.0, kind: str = "dot") -> str:
    """A point; its shape and colour tell the series, and hovering shows `tip`."""
    shape = 0 if index is None else 1 + index % 4
    a = size
    form = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{a:.1f}"',
        f'<rect x="{x - a * 0.9:.1f}" y="{y - a * 0.9:.1f}" width="{a * 1.8:.1f}" height="{a * 1.8:.1f}"',
        f'<path d="M{x:.1f} {y - a * 1.2:.1f}l{a * 1.15:.1f} {a * 2:.1f}h{-a * 2.3:.1f}z"',
        f'<path d="M{x:.1f} {y - a * 1.3:.1f}l{a * 1.3:.1f} {a * 1.3:.1f}l{-a * 1.3:.1f} {a * 1.3:.1f}'
        f'l{-a * 1.3:.1f} {-a * 1.3:.1f}z"',
        f'<path d="M{x:.1f} {y + a * 1.2:.1f}l{a * 1.15:.1f} {-a * 2:.1f}h{-a * 2.3:.1f}z"',
    )[shape]
    name = form[1 : form.index(" ")]
    return f'{form} class="{kind}"><title>{escape(tip)}</title></{name}>'


def cross(x: Number, y: Number, index: int | None, series: int, tip: str) -> str:
    """A cross for a value that does not exist; hovering shows `tip`."""
    form = f'<path d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8" class="cross"><title>{escape(tip)}</title></path>'
    return f'<g class="arm {style(index)}" data-arm="{series}">{form}</g>'


def text(x: Number, y: Number, content: str, anchor: str = "start", kind: str = "", tip: str = "") -> str:
    """A line of text; hovering shows `tip` if it is another text."""
    classes = f' class="{kind}"' if kind else ""
    title = f"<title>{escape(tip)}</title>" if tip and tip != content else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{classes}>{escape(content)}{title}</text>'


def line(x1: Number, y1: Number, x2: Number, y2: Number, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


@dataclass
class Frame:
    """The plane of a chart: `inside` is clipped to it; `around` is drawn below and `over` above, neither clipped."""

    width: int
    height: int
    left: Number
    right: Number
    top: Number
    bottom: Number
    inside: list[str] = field(default_factory=list)
    around: list[str] = field(default_factory=list)
    over: list[str] = field(default_factory=list)

    def make_room(self, y: Scale) -> None:
        """Moves the left edge so that the labels of `y` fit."""
        self.left = max(self.left, 8 + max((width_of(label) for _, label in y.ticks(LABEL_SPACING)), default=0.0))

    def axes(self, x: Scale, y: Scale, x_title: str, y_title: str, x_ticks: list[tuple[Number, str]]) -> None:
        """Ticks, grid and the titles of both axes."""
        for value, label in y.ticks(LABEL_SPACING):
            self.around.append(line(self.left, y(value), self.width - self.right, y(value), "grid"))
            self.around.append(text(self.left - 6, y(value) + 4, label, "end", "tick"))
        self.around.append(text(0, 12, y_title, "start", "title"))
        self.x_axis(x, x_title, x_ticks)

    def x_axis(self, x: Scale, title: str, ticks: list[tuple[Number, str]]) -> None:
        """The lower axis; labels that would overlap are left out."""
        floor = self.height - self.bottom
        edge = -math.inf
        for value, label in ticks:
            self.around.append(line(x(value), floor, x(value), floor + TICK_LENGTH, "axis"))
            half = width_of(label) / 2
            at = min(max(x(value), half), self.width - half)
            if at - half > edge + 6:
                self.around.append(text(at, floor + 17, label, "middle", "tick"))
                edge = at + half
        self.around.append(line(self.left, floor, self.width - self.right, floor, "axis"))
        self.around.append(text(self.left, floor + 36, title, "start", "title"))

    def svg(self, kind: str, description: str) -> str:
        """The chart; `kind` is the CSS class of its root."""
        w, h = self.width - self.left - self.right, self.height - self.top - self.bottom
        inner = (
            f'<svg x="{self.left:.1f}" y="{self.top:.1f}" width="{w:.1f}" height="{h:.1f}" '
            f'viewBox="{self.left:.1f} {self.top:.1f} {w:.1f} {h:.1f}">{"".join(self.inside)}</svg>'
        )
        return (
            f'<svg class="{kind}" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" aria-label="{escape(description)}">'
            f"{''.join(self.around)}{inner}{''.join(self.over)}</svg>"
        )
