"""Sums by validation row of what a study's endpoint is a mean of: one small file in the folder of each run.

They show how much a difference would vary over other texts like the validation set.
"""

from __future__ import annotations

import io
import json
import math
import zipfile

import numpy as np

from gpt_jax.ablation.endpoint import Endpoint, FinalLoss, LongLoss, PositionLoss, ProbeAccuracy
from gpt_jax.config.conversion import to_dict
from gpt_jax.config.errors import UserError
from gpt_jax.config.foreign import read_bytes
from gpt_jax.runs.folder import RunFolder

ROWS = "rows.npz"
ROW_TYPE, MOST_BYTES = np.dtype(np.float32), 256 << 20  # unpacked: 30 million rows

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
    """The rows that a run keeps for `endpoint`; None where it keeps none, or those of another endpoint.

    Raises:
      UserError: the file is damaged.
    """
    if not folder.exists(ROWS):
        return None
    file = folder.file(ROWS)
    try:
        of, sums, weights = _arrays(file.read_bytes() if folder.is_remote else read_bytes(file))
    except UserError:
        raise
    except Exception as error:  # of the libraries that read zip files and arrays: of many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} is damaged ({reason}): delete it, and the study measures it again") from None
    return (sums, weights) if str(of) == _name(endpoint) else None


def _arrays(content: bytes) -> list[np.ndarray]:
    """The arrays that `write_rows` wrote."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = [file.getinfo(f"{name}.npy") for name in ("of", "sums", "weights")]
        if sum(member.file_size for member in members) > MOST_BYTES:
            raise ValueError("it is too large")
        arrays = [_array(file.read(member)) for member in members]
    of, sums, weights = arrays
    if of.dtype.kind != "U" or of.shape or sums.shape != weights.shape or {sums.dtype, weights.dtype} != {ROW_TYPE}:
        raise ValueError("its arrays are of other kinds")
    return arrays


def _array(content: bytes) -> np.ndarray:
    """The array in the bytes of an .npy file, which must have the size that its header says."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array is of an unknown version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    rest = content[file.tell() :]
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(rest):
        raise ValueError("an array has another size than it says")
    return np.frombuffer(rest, dtype).reshape(shape)


def mean_of(rows: RowSums) -> float:
    """Σ weight · value / Σ weight over all rows."""
    sums, weights = (x.astype(np.float64).sum() for x in rows)
    return float(sums / weights)


def _name(endpoint: Endpoint) -> str:
    return json.dumps(to_dict(kept_for(endpoint)), sort_keys=True)
