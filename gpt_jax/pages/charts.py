"""Two kinds of chart: lines with bands, and points with a Pareto front; `forest` has a third.

Each is drawn for a given width, so that its text has the size of the page's text on a phone and on a desktop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from gpt_jax.pages import axes
from gpt_jax.pages.axes import Frame, Scale
from gpt_jax.pages.numbers import Number

Point = tuple[Number, Number, Number | None, Number | None]  # x, mean, lower and upper end of the band
MOST_POINTS = {None: 120, 2: 64, 10: 64}  # of a line, by the base of its axis
LABEL_WIDE, LABEL_NARROW = 150.0, 96.0


@dataclass(frozen=True)
class Line:
    """A line of the series of number `series` on its page. `index` colours it (None: the reference series); `marks` and
    `ringed` are (x, y, tip), and `crossed` are (x, tip) of places without a value, which stand at the top.
    """

    name: str
    index: int | None
    series: int
    points: Sequence[Point]
    marks: Sequence[tuple[Number, Number, str]] = ()
    ringed: Sequence[tuple[Number, Number, str]] = ()
    crossed: Sequence[tuple[Number, str]] = ()


@dataclass(frozen=True)
class Plane:
    """Titles, scales and ticks of a chart's axes; `cut` leaves the first values, far above the others, out of range."""

    x_title: str
    y_title: str
    log_x: int | None = None
    x_ticks: Sequence[tuple[Number, str]] | None = None
    y_range: tuple[Number, Number] | None = None
    cut: bool = False
    zero: bool = False


def thin(points: Sequence[Point], log: int | None) -> list[Point]:
    """At most `MOST_POINTS` points: neighbours are averaged, over equal ratios of x if its axis is logarithmic."""
    most = MOST_POINTS[log]
    if len(points) <= most:
        return list(points)

    places = [p[0] if log is None else math.log(p[0]) for p in points]
    low, high = places[0], places[-1]
    bins: dict[int, list[Point]] = {}
    for place, point in zip(places, points, strict=True):
        bins.setdefault(int((place - low) / (high - low) * (most - 1)), []).append(point)
    return [_average(group) for group in bins.values()]


def _average(group: Sequence[Point]) -> Point:
    x, y = (sum(p[i] for p in group) / len(group) for i in (0, 1))  # type: ignore[misc]
    if any(p[2] is None or p[3] is None for p in group):
        return x, y, None, None
    low, high = (sum(p[i] for p in group) / len(group) for i in (2, 3))  # type: ignore[misc]
    return x, y, low, high


def draw_lines(lines: Sequence[Line], plane: Plane, width: int, kind: str, description: str) -> str:
    """Lines over x, each with its band and its name at its end; hovering shows the nearest point."""
    lines = [replace(a, points=thin(a.points, plane.log_x)) for a in lines]
    room = LABEL_NARROW if width < 480 else LABEL_WIDE
    keyed = len(lines) > axes.COLOURS + 1  # colours repeat with other dashes, so the names show the dash
    right = min(room + 16 * keyed, max(axes.width_of(line.name) for line in lines) + 16 + 24 * keyed) + 10
    height = round(max(0.62 * width, 250.0, 76 + axes.LINE * len(lines)))
    frame = Frame(width, height, 46, right, 26, 44)
    y = _height(lines, plane, frame)
    frame.make_room(y)
    known = [p[0] for a in lines for p in a.points] + [p[0] for a in lines for p in a.crossed]
    x = axes.scale(known, frame.left, width - right, plane.log_x, 0.02)
    ticks = list(plane.x_ticks) if plane.x_ticks is not None else x.ticks(52)
    frame.axes(x, y, plane.x_title, plane.y_title, ticks)
    frame.inside.append(_crosses(lines, x, frame.top + 8))
    if plane.zero:
        frame.inside.append(axes.line(frame.left, y(0), width - right, y(0), "zero"))
    last = len(lines) - 1
    for i in [*range(1, last + 1), 0] if last else [0]:  # the baseline, which is the first, lies on top
        frame.inside.append(_line(lines[i], x, y, plane))
    ends = [y(min(max(a.points[-1][1], y.low), y.high)) for a in lines]
    places = axes.spread(ends, axes.LINE, frame.top + 6, height - frame.bottom - 2)
    for a, end, place in zip(lines, ends, places, strict=True):
        edge = width - right
        tail = f'<path d="M{x(a.points[-1][0]):.1f} {end:.1f}L{edge + 2:.1f} {end:.1f}L{edge + 12:.1f} {place:.1f}"'
        start = edge + 15
        if keyed:
            dash = axes.dash(a.index)
            tail += f' class="tail faint"/><path d="M{start:.1f} {place:.1f}h20" class="line"{dash}/><path d=""'
            start += 24
        name = axes.text(start, place + 4, axes.shorten(a.name, width - start - 2), "start", "name", a.name)
        frame.over.append(f'<g class="arm {axes.style(a.index)}" data-arm="{a.series}">{tail} class="tail"/>{name}</g>')
    return frame.svg(kind, description)


def _crosses(lines: Sequence[Line], x: Scale, top: Number) -> str:
    """A cross for each place where a series has no value, those of one x beneath each other."""
    found: dict[Number, int] = {}
    parts = []
    for a in lines:
        for place, tip in a.crossed:
            found[place] = (found[place] if place in found else 0) + 1
            parts.append(axes.cross(x(place), top + 11 * (found[place] - 1), a.index, a.series, tip))
    return "".join(parts)


def _height(lines: Sequence[Line], plane: Plane, frame: Frame) -> Scale:
    start, end = frame.height - frame.bottom, frame.top
    if plane.y_range is not None:
        return Scale(*plane.y_range, start, end)
    points = [p for a in lines for p in a.points]
    if plane.cut:
        low, high = min(p[0] for p in points), max(p[0] for p in points)
        begin = low + 0.2 * (high - low) if plane.log_x is None else low * (high / low) ** 0.3
        late = [p for p in points if p[0] >= begin]
        points = late if len({p[0] for p in late}) > 1 else points
    values = [v for p in points for v in p[1:] if v is not None]
    values += [m[1] for a in lines for m in (*a.marks, *a.ringed)]
    return axes.scale([*values, 0.0] if plane.zero else values, start, end, None, 0.06)


def _line(a: Line, x: Scale, y: Scale, plane: Plane) -> str:
    parts = []
    band = [(p[0], p[2], p[3]) for p in a.points if p[2] is not None and p[3] is not None]
    if len(band) > 1 and any(lo != hi for _, lo, hi in band):
        at, low, high = x.places([b[0] for b in band]), y.places([b[1] for b in band]), y.places([b[2] for b in band])
        ends = [f"{i:.1f},{j:.1f}" for i, j in [*zip(at, high, strict=True), *reversed([*zip(at, low, strict=True)])]]
        parts.append(f'<polygon points="{" ".join(ends)}" class="band"/>')
    if len(a.points) > 1:
        at, mean = x.places([p[0] for p in a.points]), y.places([p[1] for p in a.points])
        places = " ".join(f"{i:.1f},{j:.1f}" for i, j in zip(at, mean, strict=True))
        values = " ".join(f"{p[0]:.5g},{p[1]:.5g}" for p in a.points)
        parts.append(
            f'<polyline points="{places}" class="line"{axes.dash(a.index)} data-values="{values}" '
            f'data-name="{escape(a.name)}" data-x="{escape(plane.x_title)}"/>'
        )
    else:
        parts.append(axes.mark(x(a.points[0][0]), y(a.points[0][1]), a.index, f"{a.name}: {a.points[0][1]:.5g}"))
    parts += [axes.mark(x(m[0]), y(m[1]), a.index, m[2], 3.2) for m in a.marks]
    parts += [axes.mark(x(m[0]), y(m[1]), a.index, m[2], 6.0, "ring") for m in a.ringed]
    return f'<g class="arm {axes.style(a.index)}" data-arm="{a.series}">{"".join(parts)}</g>'


@dataclass(frozen=True)
class Spot:
    """A point in the plane, such as one of cost and loss, with an interval of y."""

    name: str
    index: int | None
    series: int
    x: Number
    y: Number
    interval: tuple[Number, Number] | None
    tip: str


def front(spots: Sequence[Spot]) -> list[Spot]:
    """The Pareto front: the spots for which no other is at most as large in both x and y, and smaller in one."""
    best: list[Spot] = []
    for spot in sorted(spots, key=lambda s: (s.x, s.y)):
        if not best or spot.y < best[-1].y:
            best.append(spot)
    return best


def draw_spots(spots: Sequence[Spot], best: Sequence[Spot], plane: Plane, width: int, kind: str, about: str) -> str:
    """Points with intervals and names beside them; a stepped line joins the front `best`."""
    height = round(max(0.62 * width, 260.0, 20.0 * len(spots)))
    frame = Frame(width, height, 46, 14, 26, 44)
    ends = [v for s in spots for v in (s.y, *(s.interval or ()))]
    y = axes.scale(ends, height - frame.bottom, frame.top, None, 0.1)
    frame.make_room(y)
    x = axes.scale((s.x for s in spots), frame.left, width - frame.right, plane.log_x, 0.14)
    frame.axes(x, y, plane.x_title, plane.y_title, x.ticks(64))
    places = [(x(s.x), y(s.y)) for s in best]
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}" + "".join(f"H{a:.1f}V{b:.1f}" for a, b in places[1:])
    path += f"H{width - frame.right:.1f}"
    frame.inside.append(f'<path d="{path}" class="front"><title>Pareto front</title></path>')
    taken = [(x(s.x) - 6, y(s.y) - 6, x(s.x) + 6, y(s.y) + 6) for s in spots]
    steps = [*places, (width - frame.right, places[-1][1])]
    for (x0, y0), (x1, y1) in zip(steps, steps[1:], strict=False):
        taken += [(x0, y0 - 1, x1, y0 + 1), (x1 - 1, y0, x1 + 1, y1)]
    bounds = (frame.left, frame.top, width - 2.0, height - frame.bottom)
    for s in spots:
        label = axes.shorten(s.name, 0.4 * width)
        at = _free_place(x(s.x), y(s.y), axes.width_of(label), taken, bounds)
        bar = axes.line(x(s.x), y(s.interval[0]), x(s.x), y(s.interval[1]), "whisker") if s.interval else ""
        far = abs(at[1] - y(s.y)) > 20
        leader = axes.line(x(s.x), y(s.y), at[0], at[1] - (0 if at[1] < y(s.y) else 10), "leader") if far else ""
        name = axes.text(at[0], at[1], label, "start", "name", s.name)
        group = f'<g class="arm {axes.style(s.index)}" data-arm="{s.series}">'
        frame.over.append(f"{group}{leader}{bar}{axes.mark(x(s.x), y(s.y), s.index, s.tip, 5.0)}{name}</g>")
    return frame.svg(kind, about)


Box = tuple[Number, Number, Number, Number]


def _free_place(x: Number, y: Number, wide: Number, taken: list[Box], bounds: Box) -> tuple[Number, Number]:
    """The place near (x, y) where a name overlaps least; its box is added to `taken`."""
    best, least = (x + 9, y + 4), math.inf
    for lift in (0, -14, 14, -28, 28, -42, 42, -56, 56):
        for left in (x + 9, x - 9 - wide, x - wide / 2):
            if lift == 0 and left == x - wide / 2:
                continue
            box = (left, y + lift - 7, left + wide, y + lift + 6)
            outside = max(0.0, bounds[0] - box[0]) + max(0.0, box[2] - bounds[2])
            outside += max(0.0, bounds[1] - box[1]) + max(0.0, box[3] - bounds[3])
            covered = sum(
                max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
                * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
                for other in taken
            )
            cost = covered + 40 * outside + abs(lift)
            if cost < least:
                best, least = (left, y + lift + 4), cost
    taken.append((best[0], best[1] - 11, best[0] + wide, best[1] + 2))
    return best
