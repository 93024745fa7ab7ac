"""Bars that start where the one before ends: parts of a whole, with the limit that the whole must keep to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from gpt_jax.pages import axes
from gpt_jax.pages.axes import Frame
from gpt_jax.pages.numbers import Number

BESIDE, STEP_WIDE, STEP_NARROW = 200.0, 26.0, 40.0


@dataclass(frozen=True)
class Bar:
    """A part: its name, its length in units of the axis, and the figure written beside it."""

    name: str
    length: Number
    figure: str


def draw_bars(
    bars: Sequence[Bar], title: str, limit: tuple[Number, str] | None, width: int, kind: str, about: str
) -> str:
    """Parts below each other along one axis, and a line for a limit (its value and its name)."""
    is_stacked = width < 480  # names above the bars in place of beside them
    names, figures = (axes.width_of(max(texts, key=axes.width_of)) for texts in _texts(bars))
    left = 8.0 if is_stacked else min(BESIDE, names) + 14
    right = 12.0 + (0 if is_stacked else figures)
    step = STEP_NARROW if is_stacked else STEP_WIDE
    frame = Frame(width, round(30 + step * len(bars) + 44), left, right, 30, 44)
    total = sum(bar.length for bar in bars)
    end = max(total, 0.0 if limit is None else limit[0])
    x = axes.Scale(0.0, end * 1.02 or 1.0, left, width - right)
    floor = frame.height - frame.bottom
    ticks = x.ticks(56)
    frame.inside += [axes.line(x(value), frame.top, x(value), floor, "grid") for value, _ in ticks]
    frame.x_axis(x, title, ticks)
    done = 0.0
    for index, bar in enumerate(bars):
        top = frame.top + step * index + (16 if is_stacked else 3)
        start, stop = x(done), x(done + bar.length)
        tip = escape(f"{bar.name}: {bar.figure}")
        shape = f'x="{start:.1f}" y="{top:.1f}" width="{max(1.0, stop - start):.1f}" height="18"'
        frame.inside.append(
            f'<g class="c{index % axes.COLOURS}"><rect {shape} class="bar"><title>{tip}</title></rect></g>'
        )
        if is_stacked:
            frame.over.append(axes.text(left, top - 3, bar.name, "start", "name"))
            frame.over.append(axes.text(width - right, top - 3, bar.figure, "end", "figure"))
        else:
            frame.over.append(axes.text(left - 8, top + 13, axes.shorten(bar.name, left - 10), "end", "name", bar.name))
            frame.over.append(axes.text(width - right + 6, top + 13, bar.figure, "start", "figure"))
        done += bar.length
    if limit is not None:
        frame.inside.append(axes.line(x(limit[0]), frame.top, x(limit[0]), floor, "zero"))
        at = min(max(x(limit[0]), axes.width_of(limit[1]) / 2), width - axes.width_of(limit[1]) / 2)
        frame.over.append(axes.text(at, 20, limit[1], "middle", "side"))
    return frame.svg(kind, about)


def _texts(bars: Sequence[Bar]) -> tuple[list[str], list[str]]:
    return [bar.name for bar in bars], [bar.figure for bar in bars]
