"""Pictures over updates, positions, lengths and tasks: one line for each arm, with a band over its seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from gpt_jax.ablation.findings import ArmResults, Curves, StudyResults
from gpt_jax.ablation.picture import Picture, banded, line_picture, lines_of, not_drawn
from gpt_jax.ablation.schema import Points
from gpt_jax.pages.charts import MOST_POINTS, Line, Plane, Point
from gpt_jax.pages.numbers import compact, loss

Split = Literal["train", "validation"]
LOSS = "validation loss (nats per token)"


def _curve(arm: ArmResults, split: Split) -> Points | None:
    curves = arm.curves or Curves()
    return curves.train if split == "train" else curves.validation


def bands(lines: list[Line]) -> str:
    """A sentence on the bands of the lines; empty if there are none."""
    has_bands = any(lo is not None and hi is not None and hi > lo for a in lines for _, _, lo, hi in a.points)
    return " Mean over seeds; the bands span them." if has_bands else ""


def curves(results: StudyResults, split: Split) -> Picture | None:
    """The loss over training, of the split `train` or `validation`."""
    lines = lines_of(results, lambda arm: banded(_curve(arm, split)))
    note = bands(lines)
    note += " Neighbouring steps are averaged." if any(len(a.points) > MOST_POINTS[None] for a in lines) else ""
    note += f" The first losses may leave the picture at the top.{not_drawn(results)}"
    title = "Training loss" if split == "train" else "Validation loss over training"
    plane = Plane("updates", f"{'training' if split == 'train' else split} loss (nats per token)", cut=True)
    return line_picture(f"{split}-curves", title, note.strip(), lines, plane)


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
    return line_picture("gap", "Loss minus the baseline’s over training", note + not_drawn(results), shown, plane)


def positions(results: StudyResults) -> Picture | None:
    """The loss by position in the context."""
    found = [p[0] for arm in results.arms for p in arm.loss_by_position or () if p[0] is not None]
    shift = 1 - min(found) if found and min(found) < 1 else 0
    lines = lines_of(results, lambda a: [(x + shift, y, lo, hi) for x, y, lo, hi in banded(a.loss_by_position)])
    note = f"How much an arm gains from a longer context: a line that keeps falling uses it.{bands(lines)}"
    plane = Plane("position in the context (tokens, log scale)", "validation loss (nats)", log_x=2, cut=True)
    return line_picture("position", "Loss by position", note + not_drawn(results), lines, plane)


def _marked(line: Line, say: Callable[[Point], str]) -> Line:
    """The line with a mark at each of its points, whose tip is `say(point)`."""
    return replace(line, marks=[(p[0], p[1], f"{line.name}, {say(p)}") for p in line.points])


def extrapolation(results: StudyResults) -> Picture | None:
    """The loss on rows longer than those of training."""
    lines = lines_of(results, lambda arm: banded(arm.extrapolation))
    lines = [_marked(a, lambda p: f"{p[0]:g}×: {loss(p[1])}") for a in lines]
    ticks = [(x, f"{x:g}×") for x in sorted({p[0] for a in lines for p in a.points})]
    note = f"Evaluated on rows longer than those of training, without training further.{bands(lines)}"
    plane = Plane("length of a row (× the training context, log scale)", LOSS, log_x=2, x_ticks=ticks)
    return line_picture("extrapolation", "Length extrapolation", note + not_drawn(results), lines, plane)


def accuracy(results: StudyResults) -> Picture | None:
    """The accuracy of the study's probe by x."""
    lines = lines_of(results, lambda arm: banded(arm.accuracy_by.points if arm.accuracy_by else None))
    labels = [arm.accuracy_by.label for arm in results.arms if arm.accuracy_by]
    label = labels[0] if labels else ""
    lines = [_marked(a, lambda p: f"{label} {p[0]:g}: {p[1]:.1%}") for a in lines]
    places = sorted({p[0] for a in lines for p in a.points})
    log = 2 if places and places[0] > 0 and places[-1] >= 8 * places[0] else None
    ticks = [(x, compact(x)) for x in places]
    title = f"{label} (log scale)" if log else label
    plane = Plane(title, "accuracy (share of answers)", log_x=log, x_ticks=ticks, y_range=(-0.03, 1.03))
    note = f"1 is every answer right.{bands(lines) or ' Mean over seeds.'}"
    return line_picture("accuracy", f"Accuracy by {label}", note + not_drawn(results), lines, plane)
