"""The loss curve of a run as a PNG image."""

from __future__ import annotations

import io

import numpy as np

from gpt_jax.runs import metrics
from gpt_jax.runs.folder import LOSS_PLOT, RunFolder


def smooth(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average of an (N,) series, without a bias towards 0 at its beginning."""
    result = np.empty(len(values))
    total, norm = 0.0, 0.0
    for i, value in enumerate(values):
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        result[i] = total / norm
    return result


def plot_loss(folder: RunFolder) -> str:
    """Draws training and validation loss over steps from `metrics.jsonl` into `loss.png`; returns its path.

    Process 0 draws.
    """
    if not folder.writes:
        return str(folder.file(LOSS_PLOT))
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [r for r in metrics.read(folder, "train") if r["loss"] is not None]
    validation = [r for r in metrics.read(folder, "validation") if r["loss"] is not None]
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if train:
        steps, losses = np.array([r["step"] for r in train]), np.array([r["loss"] for r in train])
        axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.7)
        axes.plot(steps, smooth(losses, 1 - 1 / max(1, len(losses) // 50)), color="tab:blue", label="train (smoothed)")
    if validation:
        steps, losses = np.array([r["step"] for r in validation]), np.array([r["loss"] for r in validation])
        axes.plot(
            steps, losses, color="tab:orange", marker="o", markersize=4, label=f"validation (last {losses[-1]:.4f})"
        )
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=folder.path.name)
    axes.grid(alpha=0.3)
    if train or validation:
        axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    folder.write_bytes(LOSS_PLOT, picture.getvalue())
    return str(folder.file(LOSS_PLOT))
