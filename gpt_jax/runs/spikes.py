"""Steps that went wrong, with the documents of their batches: losses that spike, and numbers that are not finite."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpt_jax.config import LogSpikes, RewindSpikes, Train
from gpt_jax.data import Data
from gpt_jax.data.sources import Span, sources

SPIKE = "spike"  # the split of these records
SHOWN = 4  # documents in a line; the record has all


class SpikeWatch:
    """Looks at the loss of each step, and remembers those of the last updates that were applied."""

    def __init__(
        self, train: Train, data: Data, earlier: Sequence[Mapping[str, Any]], batch: Callable[[int], int]
    ) -> None:
        """`earlier` are the training records of earlier starts up to the checkpoint, in their order; `batch` gives the
        number of the batch of a step, both from 0.
        """
        self._train, self._data, self._batch = train, data, batch
        window = 2 if train.spikes is None else train.spikes.window
        self._losses: deque[float] = deque(maxlen=window)
        self._skipped = 0
        for record in earlier:
            self._add(record)

    def begin(self, skipped: int) -> None:
        """`skipped` counts the updates that earlier starts did not apply, of which records may be missing."""
        self._skipped = skipped

    def look(self, step: int, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record of step `step` (from 1) with these metrics if it went wrong, else None."""
        reason = self._reason(values)
        self._add(values)
        if reason is None:
            return None
        spans = [list(span) for span in sources(self._data, self._batch(step - 1), self._train.batch_size)]
        return {"step": step, "split": SPIKE, "loss": values["loss"], "reason": reason, "documents": spans}

    def asks_to_rewind(self, values: Mapping[str, Any]) -> bool:
        """Whether a step with these metrics, of which `look` gave a record, sends the run back: a spike does, a number
        that is not finite does not.
        """
        is_finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
        return isinstance(self._train.spikes, RewindSpikes) and is_finite

    def _add(self, values: Mapping[str, Any]) -> None:
        is_applied = values["skipped"] == self._skipped
        self._skipped = values["skipped"]
        if is_applied and values["loss"] is not None:
            self._losses.append(values["loss"])

    def _reason(self, values: Mapping[str, Any]) -> str | None:
        loss, spikes = values["loss"], self._train.spikes
        if not math.isfinite(loss) or not math.isfinite(values["grad_norm"]):
            return "the loss or gradient is not finite; the update is skipped"
        is_skipped = values["skipped"] != self._skipped
        if not is_skipped and (not isinstance(spikes, LogSpikes | RewindSpikes) or len(self._losses) < spikes.window):
            return None
        if not self._losses:  # this start has none yet, and its earlier ones recorded none
            return f"the loss {loss:.4f} is a spike; the update is skipped"
        mean = math.fsum(self._losses) / len(self._losses)
        if loss <= mean and not is_skipped:  # spares half of the steps what follows
            return None
        deviation = math.sqrt(math.fsum((other - mean) ** 2 for other in self._losses) / len(self._losses))
        if not is_skipped and loss - mean <= spikes.sigmas * deviation:  # type: ignore[union-attr]
            return None
        above = f"{(loss - mean) / deviation:.1f} standard deviations above" if deviation else "above"
        skipped = "; the update is skipped" if is_skipped else ""
        return f"the loss {loss:.4f} is {above} {mean:.4f}, the mean of {len(self._losses)} losses{skipped}"


def sentence(record: Mapping[str, Any]) -> str:
    """A record in a line: the step, what went wrong, and the first documents of its batch."""
    spans = [Span(*values) for values in record["documents"]]
    shown = ", ".join(_place(span) for span in spans[:SHOWN])
    more = f" and {len(spans) - SHOWN} more" if len(spans) > SHOWN else ""
    return f"step {record['step']:,}: {record['reason']}. Its batch: {shown}{more}"


def _place(span: Span) -> str:
    where = f"tokens {span.first}–{span.stop - 1}"
    return f"document {span.document} ({where}{'' if span.byte is None else f', from byte {span.byte}'})"
