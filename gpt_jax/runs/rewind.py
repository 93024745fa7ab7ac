"""Going back after a spike of the loss: which batches a run leaves out. They are recorded, so a resume leaves out the
same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_jax.config.errors import UserError
from gpt_jax.runs.folder import LEFT_OUT, RunFolder

FIELDS = {"after": int, "batches": int, "step": int, "loss": float, "reason": str, "documents": list}


class TooManySpikes(UserError):
    """The loss spiked again after the run went back as often as it may."""


@dataclass(frozen=True)
class LeftOut:
    """The batches that a run has left out: after `after` updates the next `batches`, for each spike that it met.

    A record also has the step, the loss and the documents of the spike, and the reason why it is one.
    """

    records: tuple[Mapping[str, Any], ...] = ()

    def batch(self, step: int) -> int:
        """The number of the batch of a step, both from 0."""
        return step + sum(record["batches"] for record in self.records if record["after"] <= step)

    def added(self, spike: Mapping[str, Any], after: int) -> LeftOut:
        """With the batches from the checkpoint of `after` updates up to that of `spike`, a record of `SpikeWatch`."""
        what = {name: spike[name] for name in ("step", "loss", "reason", "documents")}
        return LeftOut((*self.records, {"after": after, "batches": spike["step"] - after, **what}))


def read_left_out(folder: RunFolder) -> LeftOut:
    """What the run in a folder has left out.

    Raises:
      UserError: the file is damaged.
    """
    if not folder.exists(LEFT_OUT):
        return LeftOut()
    records = folder.read_json(LEFT_OUT)
    if not isinstance(records, list) or not all(map(_is_record, records)):
        raise UserError(f"{folder.file(LEFT_OUT)} is damaged: restore it from a copy, or start in another folder")
    return LeftOut(tuple(records))


def write_left_out(folder: RunFolder, left_out: LeftOut) -> None:
    folder.write_json(LEFT_OUT, list(left_out.records))


def check_count(left_out: LeftOut, most: int, spike: Mapping[str, Any]) -> None:
    """Raises TooManySpikes if the run has gone back `most` times already."""
    if len(left_out.records) >= most:
        raise TooManySpikes(
            f"the loss of step {spike['step']} spiked after the run has gone back {most} times"
            " (train.spikes.most): lower optimizer.learning_rate or set train.clip_norm, in another folder"
        )


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and record.keys() == FIELDS.keys()
        and all(isinstance(record[name], kind) for name, kind in FIELDS.items())
        and min(_counts(record)) >= 0
    )


def _counts(record: Mapping[str, Any]) -> Sequence[int]:
    return record["after"], record["batches"] - 1, record["step"] - 1
