"""A forest: differences with their intervals, one below the other, over the range that does not matter.

The axis spans what each row says it must, so that one far value does not squeeze the others; what lies beyond it is
marked by an arrow at the edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from gpt_jax.pages import axes
from gpt_jax.pages.axes import Frame, Scale
from gpt_jax.pages.numbers import Number

BESIDE = 150.0  # pixels of the longest name that still stands beside its row


@dataclass(frozen=True)
class Pair:
    """The difference of one pair: its value, what names it where it lies beyond the axis, and the tip of its dot."""

    value: Number
    label: str
    tip: str
    is_outlier: bool = False


@dataclass(frozen=True)
class ForestRow:
    """A difference: its mean, the interval that decides (thick) and the one that holds for it alone (thin), and its
    pairs. `figures`, `p` and `verdict` are written beside it; the axis spans `shown`.
    """

    name: str
    index: int | None
    series: int
    mean: Number
    interval: tuple[Number, Number] | None
    alone: tuple[Number, Number] | None
    pairs: Sequence[Pair]
    figures: str
    p: str
    verdict: str
    shown: Sequence[Number]


def draw_forest(
    rows: Sequence[ForestRow],
    smallest: Number | None,
    title: str,
    sides: tuple[str, str],
    width: int,
    kind: str,
    about: str,
) -> str:
    """Differences with their intervals; the range ± `smallest` is shaded, and `sides` names left and right."""
    names = max(axes.width_of(row.name) for row in rows)
    is_stacked = width < 480 or names > BESIDE  # names and figures above each row in place of beside it
    left, right = (8.0, 8.0) if is_stacked else (names + 12, 206.0)
    step = 46.0 if is_stacked else 36.0
    height = round(30 + step * len(rows) + 44)
    frame = Frame(width, height, left, right, 30, 44)
    values = [v for r in rows for v in r.shown] + [0.0]
    values += [smallest, -smallest] if smallest is not None else []
    x = axes.scale(values, left, width - right)
    floor = height - frame.bottom
    if smallest:
        a, b = x(-smallest), x(smallest)
        tip = f"smaller than the smallest difference that matters: ± {smallest:g}"
        frame.inside.append(
            f'<rect x="{a:.1f}" y="{frame.top}" width="{b - a:.1f}" height="{floor - frame.top}" class="region">'
            f"<title>{tip}</title></rect>"
        )
    ticks = x.ticks(46)
    for value, _ in ticks:
        frame.inside.append(axes.line(x(value), frame.top, x(value), floor, "grid"))
    frame.inside.append(axes.line(x(0), frame.top, x(0), floor, "zero"))
    frame.x_axis(x, title, ticks)
    frame.around.append(axes.text(left, 18, f"← {sides[0]}", "start", "side"))
    frame.around.append(axes.text(width - right, 18, f"{sides[1]} →", "end", "side"))
    for i, row in enumerate(rows):
        middle = frame.top + step * (i + 0.5) + (9 if is_stacked else 0)
        frame.inside.append(_row(row, x, middle))
        labels = _labels_above(row, frame, middle) if is_stacked else _labels_beside(row, frame, middle)
        labels += _arrows(row, x, middle + 12)
        frame.over.append(f'<g class="arm {axes.style(row.index)}" data-arm="{row.series}">{labels}</g>')
    return frame.svg(kind, about)


def _labels_above(row: ForestRow, frame: Frame, middle: Number) -> str:
    said = row.figures if frame.width < 480 else f"{row.figures}{row.p}, {axes.shorten(row.verdict, 170)}"
    figures = axes.text(frame.width - frame.right, middle - 12, said, "end", "figure")
    room = frame.width - frame.left - frame.right - axes.width_of(said) - 12
    return axes.text(frame.left, middle - 12, axes.shorten(row.name, room), "start", "name", row.name) + figures


def _labels_beside(row: ForestRow, frame: Frame, middle: Number) -> str:
    name = axes.text(frame.left - 8, middle + 4, axes.shorten(row.name, frame.left - 10), "end", "name", row.name)
    at = frame.width - frame.right + 10
    figures = axes.text(at, middle - 2, f"{row.figures}{row.p}", "start", "figure")
    verdict = axes.text(at, middle + 12, axes.shorten(row.verdict, frame.right - 14), "start", "tick", row.verdict)
    return name + figures + verdict


def _arrows(row: ForestRow, x: Scale, y: Number) -> str:
    """At each edge, an arrow with the names of what lies beyond it."""
    found = [(row.mean, "mean", f"mean: {row.figures}"), *((p.value, p.label, p.tip) for p in row.pairs)]
    below = [(name, tip) for value, name, tip in found if value < x.low]
    above = [(name, tip) for value, name, tip in found if value > x.high]
    parts = []
    for beyond, place, anchor in ((below, x.start + 3, "start"), (above, x.end - 3, "end")):
        if beyond:
            names = ", ".join(name for name, _ in beyond[:3]) + (" …" if len(beyond) > 3 else "")
            label = f"← {names}" if anchor == "start" else f"{names} →"
            parts.append(axes.text(place, y, label, anchor, "beyond", "; ".join(tip for _, tip in beyond)))
    return "".join(parts)


def _row(row: ForestRow, x: Scale, middle: Number) -> str:
    tip = f"{row.name}: {row.figures}{row.p}; {row.verdict}"
    parts = []
    for pair in row.pairs:
        kind, size = ("pair outlier", 3.2) if pair.is_outlier else ("pair", 1.8)
        title = f"<title>{escape(pair.tip)}</title>"
        parts.append(
            f'<circle cx="{x(pair.value):.1f}" cy="{middle + 8:.1f}" r="{size}" class="{kind}">{title}</circle>'
        )
    if row.interval is not None:
        parts.append(axes.line(x(row.interval[0]), middle, x(row.interval[1]), middle, "interval"))
    if row.alone is not None:
        parts.append(axes.line(x(row.alone[0]), middle - 6, x(row.alone[1]), middle - 6, "alone"))
    parts.append(axes.mark(x(row.mean), middle, row.index, tip, 5.0))
    return f'<g class="arm {axes.style(row.index)}" data-arm="{row.series}">{"".join(parts)}</g>'
