"""What a run measures: `metrics.jsonl`, and copies of it in TensorBoard and Weights & Biases.

A line is a JSON object with `step` (updates done, from 1), `split` (`train` or `validation`), `loss` (nats per token)
and further metrics. A resumed run first drops the lines after its checkpoint, so that no step is recorded twice. Lines
of the split `goodput` tell where the wall time went, and all of them stay.
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.writer import FileWriter

from gpt_jax.config import Config
from gpt_jax.config.errors import UserError
from gpt_jax.runs.folder import METRICS, TENSORBOARD, RunFolder
from gpt_jax.runs.goodput import GOODPUT

FLUSH_SECONDS = 1.0
MEASURED = ("train", "validation")
CURVES = (*MEASURED, GOODPUT)
UNPLOTTED = ("step", "split", "time")  # what TensorBoard and Weights & Biases get no curve of


def parse(text: str) -> list[dict[str, Any]]:
    """The records of a metrics file. Leaves out an incomplete last line, which a crash may cause; of two records for
    the same step and split, the later one counts.

    Raises:
      UserError: a line before the last is not a record.
    """
    lines = text.split("\n")
    records: dict[tuple[int, str], dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = json.loads(line)
            key = (record["step"], record["split"])
        except (json.JSONDecodeError, KeyError, TypeError):
            if number == len(lines):
                continue
            raise UserError(f"line {number} of {METRICS} is not a record of a step: {line[:60]!r}") from None
        records.pop(key, None)
        records[key] = record
    return list(records.values())


def read(folder: RunFolder, split: str | None = None) -> list[dict[str, Any]]:
    """The records of a run in the order of their steps: those of `split`, or of training and validation."""
    wanted = MEASURED if split is None else (split,)
    return sorted((r for r in _all(folder) if r["split"] in wanted), key=lambda r: r["step"])


def _all(folder: RunFolder) -> list[dict[str, Any]]:
    return parse(folder.read_text(METRICS)) if folder.exists(METRICS) else []


@runtime_checkable
class Sink(Protocol):
    """A destination for copies of the records."""

    def write(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """Writes records. They are buffered and reach the disk about once a second, so the loop does not wait for it."""

    def __init__(self, folder: RunFolder, step: int, sinks: list[Sink]) -> None:
        """Removes the records after `step` updates, but those of goodput, and an incomplete last line from the file."""
        self._folder = folder
        self._sinks = sinks
        self._buffer: list[str] = []
        self._flushed = time.monotonic()
        self._recorded: set[tuple[int, str]] = set()
        if folder.exists(METRICS):
            kept = [r for r in _all(folder) if r["step"] <= step or r["split"] == GOODPUT]
            kept.sort(key=lambda r: r["step"])
            self._recorded = {(r["step"], r["split"]) for r in kept}
            folder.truncate(METRICS, "".join(json.dumps(r) + "\n" for r in kept))

    def had(self, step: int, split: str) -> bool:
        """Whether the file held this record when it was opened."""
        return (step, split) in self._recorded

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds one record; numbers that are not finite become null."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._buffer.append(json.dumps(clean) + "\n")
        for sink in self._sinks if clean["split"] in CURVES else ():
            sink.write(clean)
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush(force=False)

    def flush(self, force: bool = True) -> None:
        """Writes the buffer to the file."""
        text, self._buffer = "".join(self._buffer), []
        self._folder.append(METRICS, text, force)
        self._flushed = time.monotonic()

    def close(self) -> None:
        self.flush()
        for sink in self._sinks:
            sink.close()


class TensorBoard:
    """Event files for TensorBoard. tensorboardX writes them without TensorFlow. Scalars are named `split/name`."""

    def __init__(self, folder: RunFolder, step: int) -> None:
        """Hides the events that an earlier process wrote after `step` updates."""
        self._file = FileWriter(str(folder.make(TENSORBOARD)))
        if step:
            self._file.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, record: Mapping[str, Any]) -> None:
        # One event per step: tensorboardX's `add_scalar` writes one per number, which would slow down the loop.
        values = [
            Summary.Value(tag=f"{record['split']}/{name}", simple_value=value)
            for name, value in record.items()
            if name not in UNPLOTTED and value is not None
        ]
        self._file.add_summary(Summary(value=values), record["step"])

    def close(self) -> None:
        self._file.close()


def check_wandb(config: Config) -> None:
    """Raises UserError if the configuration asks for Weights & Biases and the package is not installed."""
    if config.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise UserError(
            "config.wandb needs the package wandb: pip install 'gpt_jax[wandb]', or leave config.wandb at None"
        )


class WeightsAndBiases:
    """The run folder's run in the Weights & Biases `project`. A resumed run continues it."""

    def __init__(self, folder: RunFolder, project: str, run_id: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(project=project, id=run_id, name=folder.path.name, config=dict(config), resume="allow")

    def write(self, record: Mapping[str, Any]) -> None:
        values = {f"{record['split']}/{k}": v for k, v in record.items() if k not in UNPLOTTED and v is not None}
        self._run.log(values | {"step": record["step"]})

    def close(self) -> None:
        self._run.finish()
