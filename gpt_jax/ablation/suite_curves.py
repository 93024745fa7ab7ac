"""Pictures of answers to suites of questions over training, of studies whose runs record them."""

from __future__ import annotations

from gpt_jax.ablation.curves import bands
from gpt_jax.ablation.findings import StudyResults
from gpt_jax.ablation.picture import Picture, banded, line_picture, lines_of, not_drawn
from gpt_jax.pages.charts import Plane

ACCURACY, CHANCE = "/accuracy", "/chance"


def suite_curves(results: StudyResults) -> dict[str, Picture | None]:
    """The accuracy over training on each kind of question that an arm was asked, by the picture's name."""
    kinds = [name.removesuffix(ACCURACY) for arm in results.arms for name in arm.suites if name.endswith(ACCURACY)]
    return {f"accuracy on {_said(kind)} over training": _picture(results, kind) for kind in dict.fromkeys(kinds)}


def _said(kind: str) -> str:
    return kind.replace("/", ", ").replace("_", " ")


def _picture(results: StudyResults, kind: str) -> Picture | None:
    lines = lines_of(results, lambda arm: banded(arm.suites.get(kind + ACCURACY)))
    last = [arm.suites[kind + CHANCE][-1][1] for arm in results.arms if arm.suites.get(kind + CHANCE)]
    chances = sorted({round(float(chance), 3) for chance in last if chance is not None})
    guessing = f" The level of chance is {' to '.join(f'{x:.3g}' for x in dict.fromkeys((chances[0], chances[-1])))}."
    note = f"The same questions after each step and in each arm; they decide nothing.{guessing if chances else ''}"
    plane = Plane("updates", "accuracy (share of answers)", y_range=(-0.03, 1.03))
    key = f"suite-{kind.replace('/', '-').replace('_', '-')}"
    title = f"Accuracy on {_said(kind)} over training"
    return line_picture(key, title, f"{note}{bands(lines)}{not_drawn(results)}", lines, plane)
