"""Which checkpoints of a run stay: the newest ones, and the one of the lowest validation loss.

The losses come from the run's own files and not from Orbax's metrics: Orbax writes those only if it is given a
`best_fn`, does not notice damage to their values, and cannot open the folder at all if one of them is not JSON.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Sequence
from typing import Any

from gpt_jax.runs import metrics
from gpt_jax.runs.folder import CHECKPOINTS, RunFolder
from gpt_jax.runs.sealed import DamagedRecord, Sealed, unsealed

RECORD = "record"
RECORD_FILE = "metadata"  # as Orbax's JSON handler names it


@dataclasses.dataclass
class NewestAndBest:
    """A preservation policy for Orbax: the `keep` newest checkpoints, the best one (of equals, the newest), and the
    newest of a step up to `before`, if that is not None.

    `losses` maps a step to its validation loss; steps without one are never the best.
    """

    keep: int
    losses: dict[int, float]
    before: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether each checkpoint stays; called by Orbax, on every process, when a save has begun."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        stay = set(sorted(steps)[-self.keep :])
        known = [step for step in steps if step in self.losses]
        if known:
            stay.add(min(known, key=lambda step: (self.losses[step], -step)))
        if self.before is not None:
            stay |= {max((step for step in steps if step <= self.before), default=steps[-1])}
        return [step in stay for step in steps]


def read_record(folder: RunFolder, step: int) -> Sealed:
    """The record of one checkpoint, read without Orbax.

    Raises:
      DamagedRecord: it is not what was saved.
      OSError: it cannot be read.
    """
    try:
        content = json.loads((folder.file(CHECKPOINTS) / str(step) / RECORD / RECORD_FILE).read_bytes())
    except (ValueError, RecursionError):
        raise DamagedRecord("is not JSON") from None
    return unsealed(content, step)


def known_losses(folder: RunFolder, steps: Collection[int]) -> dict[int, float]:
    """Step → validation loss, of those checkpoints whose loss is known from their record or from `metrics.jsonl`.

    The latter has the evaluations that an interrupt put off, and those of runs whose records hold no loss.

    Raises:
      UserError: `metrics.jsonl` is damaged.
    """
    if not steps:
        return {}
    losses = {row["step"]: row["loss"] for row in metrics.read(folder, "validation") if row["step"] in steps}
    for step in steps:
        try:
            found = read_record(folder, step).validation_loss
        except (DamagedRecord, OSError):  # restoring it will say so; it is not the best
            losses.pop(step, None)
            continue
        if found is not None:
            losses[step] = found
    return {step: float(loss) for step, loss in losses.items() if _is_finite(loss)}


def _is_finite(loss: Any) -> bool:
    return isinstance(loss, int | float) and math.isfinite(loss)
