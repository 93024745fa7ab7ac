"""What the pictures of a study's results share: the figure on a page, the arms' colours, and the arms that may be drawn
as means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from gpt_jax.ablation.findings import ArmResults, StudyResults
from gpt_jax.ablation.statuses import failed
from gpt_jax.pages.charts import Line, Plane, Point, draw_lines
from gpt_jax.pages.numbers import Number
from gpt_jax.pages.standalone import standalone

WIDE, NARROW = 560, 358  # pixels: half of a desktop page, and a phone
STAMP = "smoke test: decides nothing"
EXPORT = "export"


@dataclass(frozen=True)
class Picture:
    """A picture, drawn by `draw(width, kind, description)`; `note` says how to read it, `stamp` is written across."""

    key: str
    title: str
    note: str
    draw: Callable[[int, str, str], str]
    stamp: str = ""

    def _drawn(self, width: int, kind: str) -> str:
        drawn = self.draw(width, kind, f"{self.title}. {self.note}")
        mark = f'<text x="50%" y="50%" text-anchor="middle" class="stamp">{escape(self.stamp)}</text>'
        return f"{drawn.removesuffix('</svg>')}{mark}</svg>" if self.stamp else drawn

    def html(self, is_exported: bool = False) -> str:
        """The figure, once for wide pages and once for narrow ones; the style sheet shows one of both. With links to
        its files if it is exported.
        """
        links = "".join(f' · <a href="{EXPORT}/{self.key}.{kind}">{kind.upper()}</a>' for kind in ("svg", "png"))
        files = f'<p class="files">{links.removeprefix(" · ")}</p>' if is_exported else ""
        drawn = self._drawn(WIDE, "wide") + self._drawn(NARROW, "narrow")
        caption = f"<figcaption><h3>{escape(self.title)}</h3><p>{escape(self.note)}</p>{files}</figcaption>"
        return f'<figure id="{self.key}">{caption}{drawn}</figure>'

    def svg(self) -> str:
        """The picture as a file of its own."""
        return standalone(self._drawn(WIDE, "wide"), self.title, self.note)


def indices(arms: Sequence[ArmResults], baseline: str) -> list[int | None]:
    """The colour of each arm: None for the baseline, 0, 1, … for the others."""
    others = [arm.name for arm in arms if arm.name != baseline]
    return [None if arm.name == baseline else others.index(arm.name) for arm in arms]


def coloured(results: StudyResults) -> list[tuple[int, ArmResults, int | None]]:
    """Number, arm and colour of each arm."""
    colours = indices(results.arms, results.baseline)
    return [(i, arm, colour) for i, (arm, colour) in enumerate(zip(results.arms, colours, strict=True))]


def lines_of(results: StudyResults, points: Callable[[ArmResults], Sequence[Point]]) -> list[Line]:
    """The arms that have points, the baseline first, without those of which seeds failed: the mean of the seeds that
    survived is no mean of the arm.
    """
    lines = [
        Line(arm.name, index, i, found)
        for i, arm, index in coloured(results)
        if not failed(arm) and (found := points(arm))
    ]
    return sorted(lines, key=lambda a: (a.index is not None, a.series))


def not_drawn(results: StudyResults) -> str:
    """A sentence on the arms that `lines_of` leaves out; empty if there is none."""
    lost = [arm.name for arm in results.arms if failed(arm)]
    return f" Not drawn, because seeds failed: {', '.join(lost)}." if lost else ""


def banded(rows: Sequence[Sequence[Number | None]] | None) -> list[Point]:
    """`[[x, mean, low, high], …]` or `[[x, mean], …]` as points; a mean that is null (diverged) ends the line."""
    known = [(*row, None, None)[:4] for row in rows or () if row[0] is not None and row[1] is not None]
    return [(float(x), float(y), lo, hi) for x, y, lo, hi in known]  # type: ignore[arg-type]


def endpoint_title(results: StudyResults) -> str:
    """The endpoint and its unit, as the title of an axis."""
    return f"{results.metric.replace('_', ' ')} ({results.unit})"


def line_picture(key: str, title: str, note: str, lines: Sequence[Line], plane: Plane) -> Picture | None:
    """A picture of lines; None if there is no line."""
    if not lines:
        return None
    return Picture(key, title, note, lambda width, kind, about: draw_lines(lines, plane, width, kind, about))
