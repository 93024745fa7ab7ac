"""Sums by validation row of what a study's endpoint is a mean of: one small file in the folder of each run.

They show how much a difference would vary over other texts like the validation set.
"""

from __future__ import annotations

import io
import json

import numpy as np

from gpt_jax.ablation.endpoint import Endpoint, FinalLoss, LongLoss, PositionLoss, ProbeAccuracy
from gpt_jax.config.conversion import to_dict
from gpt_jax.runs.folder import RunFolder

ROWS = "rows.npz"

RowSums = tuple[np.ndarray, np.ndarray]  # Σ weight · value and Σ weight of each row, (R,) float32


def kept_for(endpoint: Endpoint) -> Endpoint:
    """The endpoint whose rows a run keeps: `endpoint` itself if it is a mean over rows that are not those of the final
    validation loss, else the final loss.
    """
    return endpoint if isinstance(endpoint, LongLoss | PositionLoss | ProbeAccuracy) else FinalLoss()


def write_rows(folder: RunFolder, endpoint: Endpoint, rows: RowSums) -> None:
    """Writes the rows that are kept for `endpoint`, compressed."""
    sums, weights = (np.asarray(x, np.float32) for x in rows)
    content = io.BytesIO()
    np.savez_compressed(content, of=np.array(_name(endpoint)), sums=sums, weights=weights)
    folder.write_bytes(ROWS, content.getvalue())


def row_sums(folder: RunFolder, endpoint: Endpoint) -> RowSums | None:
    """The rows that a run keeps for `endpoint`; None where it keeps none, or those of another endpoint."""
    if not folder.exists(ROWS):
        return None
    with np.load(io.BytesIO(folder.file(ROWS).read_bytes())) as found:
        return (found["sums"], found["weights"]) if str(found["of"]) == _name(endpoint) else None


def mean_of(rows: RowSums) -> float:
    """Σ weight · value / Σ weight over all rows."""
    sums, weights = (x.astype(np.float64).sum() for x in rows)
    return float(sums / weights)


def _name(endpoint: Endpoint) -> str:
    return json.dumps(to_dict(kept_for(endpoint)), sort_keys=True)
