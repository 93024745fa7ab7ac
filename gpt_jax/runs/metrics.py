"""What a run measured: `metrics.jsonl` is the truth, TensorBoard and Weights & Biases are copies of it.

A line is a JSON object with `step` (updates done, from 1), `split` (`train` or `validation`) and `loss` (nats per
token) among others. After a restart the lines beyond the checkpoint are dropped before they are made again, so that no
step stands there twice.
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

FLUSH_SECONDS = 1.0


def parse(text: str) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that a crash tore is left out, and of two for a step and split the later
    counts.

    Raises:
      ValueError: a line in the middle is broken.
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
            raise UserError(f"line {number} of {METRICS} is no record of a step: {line[:60]!r}") from None
        records.pop(key, None)
        records[key] = record
    return list(records.values())


def read(folder: RunFolder, split: str | None = None) -> list[dict[str, Any]]:
    """The records of a run, in the order of their steps; of one split where it is given."""
    records = parse(folder.read_text(METRICS)) if folder.exists(METRICS) else []
    return sorted((r for r in records if split in (None, r["split"])), key=lambda r: r["step"])


@runtime_checkable
class Sink(Protocol):
    """Somewhere that records are copied to."""

    def write(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """Writes records. Buffered: the loop pays for a dict and a string, the disk is touched about once a second."""

    def __init__(self, folder: RunFolder, step: int, sinks: list[Sink]) -> None:
        """Begins after `step` updates: what the file holds beyond them, and a torn last line, goes."""
        self._folder = folder
        self._sinks = sinks
        self._buffer: list[str] = []
        self._flushed = time.monotonic()
        self._recorded: set[tuple[int, str]] = set()
        if folder.exists(METRICS):
            kept = [r for r in read(folder) if r["step"] <= step]
            self._recorded = {(r["step"], r["split"]) for r in kept}
            folder.truncate(METRICS, "".join(json.dumps(r) + "\n" for r in kept))

    def had(self, step: int, split: str) -> bool:
        """Whether the file held this record when the process began."""
        return (step, split) in self._recorded

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds one record; numbers that are not finite become null in the file."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._buffer.append(json.dumps(clean) + "\n")
        for sink in self._sinks:
            sink.write(clean)
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush(force=False)

    def flush(self, force: bool = True) -> None:
        """Brings what is buffered to the file."""
        text, self._buffer = "".join(self._buffer), []
        self._folder.append(METRICS, text, force)
        self._flushed = time.monotonic()

    def close(self) -> None:
        self.flush()
        for sink in self._sinks:
            sink.close()


class TensorBoard:
    """Event files for TensorBoard, through tensorboardX (which needs no TensorFlow). Scalars are named `split/name`."""

    def __init__(self, folder: RunFolder, step: int) -> None:
        """Begins after `step` updates; what an earlier process wrote beyond them is hidden."""
        self._file = FileWriter(str(folder.make(TENSORBOARD)))
        if step:
            self._file.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, record: Mapping[str, Any]) -> None:
        # One event for all of a step: tensorboardX's add_scalar is one for each number, and the loop would feel it.
        values = [
            Summary.Value(tag=f"{record['split']}/{name}", simple_value=value)
            for name, value in record.items()
            if name not in ("step", "split") and value is not None
        ]
        self._file.add_summary(Summary(value=values), record["step"])

    def close(self) -> None:
        self._file.close()


def check_wandb(config: Config) -> None:
    """Raises ValueError where the configuration asks for Weights & Biases and the package is missing."""
    if config.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise UserError(
            "config.wandb needs the package wandb: pip install 'gpt_jax[wandb]', or leave config.wandb at None"
        )


class WeightsAndBiases:
    """A run of the Weights & Biases `project`, one for a run folder: a resumed run goes on in it."""

    def __init__(self, folder: RunFolder, project: str, run_id: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(project=project, id=run_id, name=folder.path.name, config=dict(config), resume="allow")

    def write(self, record: Mapping[str, Any]) -> None:
        values = {
            f"{record['split']}/{k}": v for k, v in record.items() if k not in ("step", "split") and v is not None
        }
        self._run.log(values | {"step": record["step"]})

    def close(self) -> None:
        self._run.finish()
