"""The pictures of a study's results, and why one can't be drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Literal

from gpt_jax.ablation.findings import ArmResults, Curves, StudyResults
from gpt_jax.ablation.schema import Points
from gpt_jax.ablation.verdict import seed_pairs
from gpt_jax.pages.charts import (
    MOST_POINTS,
    ForestRow,
    Line,
    Plane,
    Point,
    Spot,
    draw_forest,
    draw_lines,
    draw_spots,
    front,
)
from gpt_jax.pages.numbers import Number, compact, loss, p_value, plus_minus, signed

Split = Literal["train", "validation"]
WIDE, NARROW = 560, 358  # pixels: half of a desktop page, and a phone


@dataclass(frozen=True)
class Picture:
    """A picture, drawn by `draw(width, kind, description)`; `note` says how to read it."""

    key: str
    title: str
    note: str
    draw: Callable[[int, str, str], str]

    def html(self) -> str:
        """The figure, once for wide pages and once for narrow ones; the style sheet shows one of both."""
        about = f"{self.title}. {self.note}"
        drawn = self.draw(WIDE, "wide", about) + self.draw(NARROW, "narrow", about)
        caption = f"<figcaption><h3>{escape(self.title)}</h3><p>{escape(self.note)}</p></figcaption>"
        return f'<figure id="{self.key}">{caption}{drawn}</figure>'


def indices(arms: Sequence[ArmResults], baseline: str) -> list[int | None]:
    """The colour of each arm: None for the baseline, 0, 1, … for the others."""
    others = [arm.name for arm in arms if arm.name != baseline]
    return [None if arm.name == baseline else others.index(arm.name) for arm in arms]


def pictures(results: StudyResults) -> tuple[list[Picture], list[str]]:
    """The pictures in the order of the report, and the names of those that are missing, with the reason unless nothing
    was measured.
    """
    made = {
        "forest of differences": _forest(results),
        "validation loss over training": curves(results, "validation"),
        "loss minus the baseline’s over training": gap(results),
        "training loss": curves(results, "train"),
        "loss against learning rate": _learning_rates(results),
        "loss by position": _positions(results),
        "length extrapolation": _extrapolation(results),
        "accuracy": _accuracy(results),
        "loss against KV bytes": _front(results),
    }
    absent = {name: reason for name, reason in made.items() if not isinstance(reason, Picture)}
    missing = [f"{name} ({reason})" if reason else name for name, reason in absent.items()]
    return [picture for picture in made.values() if isinstance(picture, Picture)], missing


def lines_of(results: StudyResults, points: Callable[[ArmResults], Sequence[Point]]) -> list[Line]:
    """The arms that have points, the baseline first."""
    indexed = enumerate(zip(results.arms, indices(results.arms, results.baseline), strict=True))
    lines = [Line(arm.name, index, i, found) for i, (arm, index) in indexed if (found := points(arm))]
    return sorted(lines, key=lambda a: (a.index is not None, a.series))


def banded(rows: Sequence[Sequence[Number | None]] | None) -> list[Point]:
    """`[[x, mean, low, high], …]` or `[[x, mean], …]` as points; a mean that is null (diverged) ends the line."""
    known = [(*row, None, None)[:4] for row in rows or () if row[0] is not None and row[1] is not None]
    return [(float(x), float(y), lo, hi) for x, y, lo, hi in known]  # type: ignore[arg-type]


def _nats(results: StudyResults) -> str:
    return f"{results.metric.replace('_', ' ')} (nats per token)"


def _picture(key: str, title: str, note: str, lines: Sequence[Line], plane: Plane) -> Picture | None:
    if not lines:
        return None
    return Picture(key, title, note, lambda width, kind, about: draw_lines(lines, plane, width, kind, about))


def _curve(arm: ArmResults, split: Split) -> Points | None:
    curves = arm.curves or Curves()
    return curves.train if split == "train" else curves.validation


def curves(results: StudyResults, split: Split) -> Picture | None:
    """The loss over training, of the split `train` or `validation`."""
    lines = lines_of(results, lambda arm: banded(_curve(arm, split)))
    has_bands = any(lo is not None and hi is not None and hi > lo for a in lines for _, _, lo, hi in a.points)
    note = "Mean over seeds; the bands span them. " if has_bands else ""
    note += "Neighbouring steps are averaged. " if any(len(a.points) > MOST_POINTS[None] for a in lines) else ""
    note += "The first losses may leave the picture at the top."
    title = "Training loss" if split == "train" else "Validation loss over training"
    plane = Plane("updates", f"{'training' if split == 'train' else split} loss (nats per token)", cut=True)
    return _picture(f"{split}-curves", title, note, lines, plane)


def gap(results: StudyResults) -> Picture | str | None:
    """The validation loss minus the baseline's at the same step."""
    lines = lines_of(results, lambda arm: banded(_curve(arm, "validation")))
    if not lines or lines[0].index is not None or len(lines) < 2:
        return "needs the baseline’s curve and another" if lines else None
    base = {x: y for x, y, _, _ in lines[0].points}
    differences = [
        replace(a, points=[(x, y - base[x], None, None) for x, y, _, _ in a.points if x in base]) for a in lines
    ]
    shown = [a for a in differences if a.points]
    if len(shown) < 2:
        return "no other was evaluated after as many updates"
    note = f"Validation loss minus that of {results.baseline} after as many updates; below 0 is better."
    plane = Plane("updates", "Δ loss (nats per token)", cut=True, zero=True)
    return _picture("gap", "Loss minus the baseline’s over training", note, shown, plane)


def _forest(results: StudyResults) -> Picture | str | None:
    base = next((arm for arm in results.arms if arm.name == results.baseline), None)
    rows = []
    for i, (arm, index) in enumerate(zip(results.arms, indices(results.arms, results.baseline), strict=True)):
        versus = arm.versus_baseline
        if versus is None or versus.mean is None:
            continue
        interval, bootstrap = versus.interval, versus.t_interval
        pairs = [ours - theirs for ours, theirs in seed_pairs(arm, base)] if base and interval is not None else []
        figures = plus_minus(versus.mean, interval, signed)
        p = "" if versus.p is None else f", p {p_value(versus.p)}"
        row = ForestRow(arm.name, index, i, versus.mean, interval, bootstrap, pairs, figures, p, versus.verdict or "")
        rows.append(row)
    if not rows:
        return "there is nothing to compare" if len(results.arms) == 1 else None
    smallest = results.smallest_difference
    shaded = "" if smallest is None else f" Shaded: differences too small to matter (± {smallest:g})."
    single = " One seed: no intervals." if all(row.interval is None for row in rows) else ""
    bars = (
        ""
        if single
        else " Thick: 95% for all arms and looks at once; thin, above: 95% for this arm alone; dots, below: the seeds."
    )
    note = f"Paired difference from {results.baseline}, mean over seeds.{bars}{single}{shaded}"
    title = "Δ " + _nats(results)

    def draw(width: int, kind: str, about: str) -> str:
        return draw_forest(rows, smallest, title, ("better", "worse"), width, kind, about)

    return Picture("forest", "Differences from the baseline", note, draw)


def _learning_rates(results: StudyResults) -> Picture | str | None:
    rates = sorted({float(rate) for arm in results.arms for rate in (arm.by_learning_rate or {})})
    if len(rates) == 1:
        return f"one learning rate, {rates[0]:g}, was tried"

    def points(arm: ArmResults) -> list[Point]:
        found = []
        for rate, runs in (arm.by_learning_rate or {}).items():
            values = [v for v in runs if v is not None]
            if values:
                found.append((float(rate), sum(values) / len(values), min(values), max(values)))
        return sorted(found)

    lines = []
    for a in lines_of(results, points):
        arm = results.arms[a.series]
        tips = {x: f"{a.name}, learning rate {x:g}: {loss(y)}{_diverged(arm, x)}" for x, y, _, _ in a.points}
        marks = [(x, y, tips[x]) for x, y, _, _ in a.points]
        edge = " (on the grid’s edge)" if arm.tuned and arm.tuned.is_at_edge else ""
        best = [(x, y, f"best: {tips[x]}{edge}") for x, y, _ in marks if x == arm.learning_rate]
        lines.append(Line(a.name, a.index, a.series, a.points, marks, best))
    note = "Mean over seeds; the bands span them; a ring marks each arm’s best. Diverged runs are left out."
    ticks = [(rate, f"{rate:g}") for rate in rates]
    plane = Plane("learning rate (log scale)", _nats(results), log_x=10, x_ticks=ticks)
    return _picture("learning-rate", "Loss against learning rate", note, lines, plane)


def _diverged(arm: ArmResults, rate: Number) -> str:
    bad = [run for run in arm.runs if run.status == "diverged" and run.learning_rate == rate]
    return f"; {len(bad)} diverged" if bad else ""


def _positions(results: StudyResults) -> Picture | None:
    found = [p[0] for arm in results.arms for p in arm.loss_by_position or () if p[0] is not None]
    shift = 1 - min(found) if found and min(found) < 1 else 0
    lines = lines_of(results, lambda a: [(x + shift, y, lo, hi) for x, y, lo, hi in banded(a.loss_by_position)])
    note = "How much an arm gains from a longer context: a line that keeps falling uses it."
    plane = Plane("position in the context (tokens, log scale)", "validation loss (nats)", log_x=2, cut=True)
    return _picture("position", "Loss by position", note, lines, plane)


def _marked(line: Line, say: Callable[[Point], str]) -> Line:
    """The line with a mark at each of its points, whose tip is `say(point)`."""
    return replace(line, marks=[(p[0], p[1], f"{line.name}, {say(p)}") for p in line.points])


def _extrapolation(results: StudyResults) -> Picture | None:
    lines = lines_of(results, lambda arm: banded(arm.extrapolation))
    lines = [_marked(a, lambda p: f"{p[0]:g}×: {loss(p[1])}") for a in lines]
    ticks = [(x, f"{x:g}×") for x in sorted({p[0] for a in lines for p in a.points})]
    note = "Evaluated on rows longer than those of training, without training further; the bands span the seeds."
    plane = Plane("length of a row (× the training context, log scale)", _nats(results), log_x=2, x_ticks=ticks)
    return _picture("extrapolation", "Length extrapolation", note, lines, plane)


def _accuracy(results: StudyResults) -> Picture | None:
    lines = lines_of(results, lambda arm: banded(arm.accuracy_by.points if arm.accuracy_by else None))
    labels = [arm.accuracy_by.label for arm in results.arms if arm.accuracy_by]
    label = labels[0] if labels else ""
    lines = [_marked(a, lambda p: f"{label} {p[0]:g}: {p[1]:.1%}") for a in lines]
    places = sorted({p[0] for a in lines for p in a.points})
    log = 2 if places and places[0] > 0 and places[-1] >= 8 * places[0] else None
    ticks = [(x, compact(x)) for x in places]
    title = f"{label} (log scale)" if log else label
    plane = Plane(title, "accuracy (share of answers)", log_x=log, x_ticks=ticks, y_range=(-0.03, 1.03))
    return _picture("accuracy", f"Accuracy by {label}", "Mean over seeds; 1 is every answer right.", lines, plane)


def _front(results: StudyResults) -> Picture | str | None:
    spots = []
    for i, (arm, index) in enumerate(zip(results.arms, indices(results.arms, results.baseline), strict=True)):
        size, mean = arm.kv_bytes_per_token, arm.mean
        if size is not None and mean is not None:
            tip = f"{arm.name}: {plus_minus(mean, arm.interval)} at {size:,.6g} bytes per token"
            spots.append(Spot(arm.name, index, i, float(size), float(mean), arm.interval, tip))
    sizes = {spot.x for spot in spots}
    if len(sizes) < 2:
        return f"all arms keep {compact(min(sizes))} bytes per token" if len(spots) > 1 else None
    log = 2 if min(sizes) > 0 and max(sizes) > 4 * min(sizes) else None
    plane = Plane(f"KV cache (bytes per token{', log scale' if log else ''})", _nats(results), log_x=log)
    best = front(spots)
    note = "Lower and further left is better. The line is the Pareto front; bars are 95% intervals of the mean."

    def draw(width: int, kind: str, about: str) -> str:
        return draw_spots(spots, best, plane, width, kind, about)

    return Picture("pareto", "Loss against KV bytes", note, draw)
