"""Pictures over learning rates: what tuning tried for each arm, and the sweep of a study of rates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from gpt_jax.ablation.findings import ArmResults, StudyResults
from gpt_jax.ablation.picture import Picture, coloured, line_picture
from gpt_jax.ablation.schema import Trial
from gpt_jax.pages.charts import Line, Plane, Point
from gpt_jax.pages.numbers import Number, loss

RATE = "learning rate (log scale)"
LOSS = "validation loss (nats per token)"


def rate_trials(trials: Sequence[Trial]) -> list[Trial]:
    """The trials of a grid of rates, by rate: those that share the weight decay and the warm-up of the most rates."""
    kinds = Counter((trial.weight_decay, trial.warmup) for trial in trials)
    if not kinds:
        return []
    kind = kinds.most_common(1)[0][0]
    return sorted(
        (t for t in trials if (t.weight_decay, t.warmup) == kind), key=lambda trial: float(trial.learning_rate)
    )


def tuning(results: StudyResults) -> Picture | str | None:
    """The loss on the tuning text over the rates that each arm tried, with the chosen one."""
    lines = []
    for i, arm, index in coloured(results):
        trials = rate_trials(arm.tuned.trials) if arm.tuned else []
        points: list[Point] = [(t.learning_rate, t.loss, None, None) for t in trials if t.loss is not None]
        if not points or arm.tuned is None:
            continue
        marks = [(x, y, f"{arm.name}, learning rate {x:g}: {loss(y)}") for x, y, _, _ in points]
        crossed = [(t.learning_rate, f"{arm.name}, {t.learning_rate:g}: failed") for t in trials if t.loss is None]
        best, ringed = arm.tuned.best, []
        if best is not None and best.loss is not None:
            edge = ", at the edge of the grid" if arm.tuned.is_at_edge else ""
            ringed = [(best.learning_rate, best.loss, f"{arm.name}, chosen: {best.learning_rate:g}{edge}")]
        lines.append(Line(arm.name, index, i, points, marks, ringed, crossed))
    if not lines:
        return "nothing was tuned" if any(arm.learning_rate is not None for arm in results.arms) else None
    note = (
        "What every arm tried, on seeds and text that the verdict does not use; a ring marks the chosen rate, a cross "
        "at the top one at which a seed failed."
    )
    plane = Plane(RATE, "loss on the tuning text (nats per token)", log_x=10, x_ticks=_ticks(lines))
    return line_picture("tuning", "Tuning of the learning rate", note, _ordered(lines), plane)


def learning_rates(results: StudyResults) -> Picture | str | None:
    """The final loss over the rates of a sweep."""
    rates = sorted({float(rate) for arm in results.arms for rate in (arm.by_learning_rate or {})})
    if len(rates) == 1:
        return f"one learning rate, {rates[0]:g}, was tried"
    lines = [line for i, arm, index in coloured(results) if (line := _sweep(i, arm, index)) is not None]
    note = (
        "Mean over seeds; the bands span them; a ring marks each arm’s best, a cross at the top a rate at which a "
        "seed failed, which has no mean."
    )
    plane = Plane(RATE, LOSS, log_x=10, x_ticks=_ticks(lines))
    return line_picture("learning-rate", "Loss against learning rate", note, _ordered(lines), plane)


def _sweep(series: int, arm: ArmResults, index: int | None) -> Line | None:
    points, crossed = [], []
    for rate, runs in (arm.by_learning_rate or {}).items():
        x = float(rate)
        values = [v for v in runs if v is not None and math.isfinite(v)]
        if values and len(values) == len(runs):
            points.append((x, sum(values) / len(values), min(values), max(values)))
        else:
            crossed.append((x, f"{arm.name}, learning rate {x:g}: {len(runs) - len(values)} of {len(runs)} failed"))
    if not points:
        return None
    marks = [(x, y, f"{arm.name}, learning rate {x:g}: {loss(y)}") for x, y, _, _ in points]
    best = [(x, y, f"best: {tip}") for x, y, tip in marks if x == arm.learning_rate]
    return Line(arm.name, index, series, sorted(points), sorted(marks), best, crossed)


def _ordered(lines: Sequence[Line]) -> list[Line]:
    return sorted(lines, key=lambda a: (a.index is not None, a.series))


def _ticks(lines: Sequence[Line]) -> list[tuple[Number, str]]:
    rates = sorted({*(p[0] for a in lines for p in a.points), *(p[0] for a in lines for p in a.crossed)})
    return [(rate, f"{rate:.3g}") for rate in rates]
