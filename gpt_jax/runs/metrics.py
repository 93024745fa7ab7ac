"""What a run measures: `metrics.jsonl`, and copies of it in TensorBoard and Weights & Biases.

A line is a JSON object with `step` (updates done, from 1), `split` (`train` or `validation`), `loss` (nats per token)
and further metrics. A resumed run first drops the lines after its checkpoint, so that no step is recorded twice. Lines
of the split `goodput` tell where the wall time went, and all of them stay. Those of the split `diagnostics` have scores
of attention heads, read on `rows` rows of up to `tokens` tokens, and those of the split `suite` accuracies on
`questions` questions of each kind.
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from gpt_jax.config import Config
from gpt_jax.config.disk import writing
from gpt_jax.config.errors import UserError
from gpt_jax.runs.folder import METRICS, TENSORBOARD, RunFolder
from gpt_jax.runs.goodput import GOODPUT

FLUSH_SECONDS = 1.0
EVENTS_SECONDS = 60.0  # between flushes of TensorBoard's file
MEASURED = ("train", "validation")
DIAGNOSTICS = "diagnostics"  # the split of the records of runs/diagnostics.py
SUITE = "suite"  # the split of the records of runs/questions.py
CURVES = (*MEASURED, GOODPUT, DIAGNOSTICS, SUITE)
# Last parts of the names of what TensorBoard and Weights & Biases get no curve of.
UNPLOTTED = ("step", "split", "time", "rows", "tokens", "questions", "low", "high")


def parse(content: bytes, upto: int | None = None) -> list[dict[str, Any]]:
    """The records of a metrics file up to step `upto` (None: all), and those of goodput, in their order; of two for the
    same step and split, the later one counts.

    A crash may cut the last line, which is left out. That of a machine may leave anything at the end of a file: if no
    record that is wanted comes after it, those before it are returned, with a warning.

    Raises:
      UserError: a damaged line is among the records that are wanted, or in the place of one.
    """
    lines = content.split(b"\n")
    records: dict[tuple[int, str], dict[str, Any]] = {}
    damaged: int | None = None
    for number, line in enumerate(lines, 1):
        if not line or (number == len(lines) and line.startswith(b"{") and parse_line(line) is None):
            continue
        record = parse_line(line)
        if record is None:
            damaged = damaged or number
        elif upto is None or record["step"] <= upto or record["split"] == GOODPUT:
            if damaged is not None and record["split"] == GOODPUT:
                continue  # it tells of time alone
            if damaged is not None:
                raise UserError(_not_a_record(damaged, lines))
            key = (record["step"], record["split"])
            records.pop(key, None)
            records[key] = record
    if damaged is not None:
        trained = [step for step, split in records if split == "train"]
        # The first step that is recorded says how often steps are.
        if upto and (not trained or trained[-1] + trained[0] <= upto):
            raise UserError(_not_a_record(damaged, lines))
        warnings.warn(
            f"line {damaged} of {METRICS} is damaged, as by a crash of the machine: it is left out, and so is the rest",
            stacklevel=3,
        )
    return list(records.values())


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None if there is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not {"step", "split"} <= record.keys():
        return None
    is_whole = type(record["step"]) is int and record["step"] >= 0 and isinstance(record["split"], str)
    if is_whole and record["split"] in MEASURED:
        is_whole = "loss" in record and isinstance(record["loss"], int | float | None)
    return record if is_whole else None


def _not_a_record(number: int, lines: Sequence[bytes]) -> str:
    return (
        f"line {number} of {METRICS} is not a record of a step: {lines[number - 1][:60]!r}; restore the file from a"
        " copy, or delete the line to do without that record"
    )


def read(folder: RunFolder, split: str | None = None, upto: int | None = None) -> list[dict[str, Any]]:
    """The records of a run in the order of their steps: those of `split`, or of training and validation. Raises as
    `parse`.
    """
    wanted = MEASURED if split is None else (split,)
    return sorted((r for r in _all(folder, upto) if r["split"] in wanted), key=lambda r: r["step"])


def _all(folder: RunFolder, upto: int | None) -> list[dict[str, Any]]:
    return parse(folder.file(METRICS).read_bytes(), upto) if folder.exists(METRICS) else []


def plotted(record: Mapping[str, Any]) -> dict[str, Any]:
    """What curves are drawn of."""
    return {k: v for k, v in record.items() if k.split("/")[-1] not in UNPLOTTED and v is not None}


@runtime_checkable
class Sink(Protocol):
    """A destination for copies of the records."""

    def write(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """Writes records. They are buffered and reach the disk about once a second, so the loop does not wait for it."""

    def __init__(self, folder: RunFolder, step: int, sinks: list[Sink]) -> None:
        """Removes the records after `step` updates, but those of goodput, and what a crash has left at the end, from
        the file.

        Raises:
          UserError: a record of these steps is damaged.
        """
        self._folder = folder
        self._sinks = sinks
        self._buffer: list[str] = []
        self._flushed = time.monotonic()
        self._recorded: set[tuple[int, str]] = set()
        if folder.exists(METRICS):
            kept = sorted(_all(folder, step), key=lambda r: r["step"])
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
        self._path = str(folder.make(TENSORBOARD))
        # Not tensorboardX's own thread, which dies at a full disk, and the run would wait for it for ever. The suffix
        # is for clocks that jump: the rest of a file's name is the time in seconds.
        with writing(self._path):
            self._file = EventsWriter(f"{self._path}/events", f".{uuid.uuid4().hex[:8]}")
        self._flushed = time.monotonic()
        if step:
            self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, record: Mapping[str, Any]) -> None:
        # One event per step: tensorboardX's `add_scalar` writes one per number, which would slow down the loop.
        values = [
            Summary.Value(tag=f"{record['split']}/{name}", simple_value=value)
            for name, value in plotted(record).items()
        ]
        self._add(step=record["step"], summary=Summary(value=values))
        if time.monotonic() - self._flushed >= EVENTS_SECONDS:
            with writing(self._path):
                self._file.flush()
            self._flushed = time.monotonic()

    def _add(self, **content: Any) -> None:
        with writing(self._path):
            self._file.write_event(Event(wall_time=time.time(), **content))

    def close(self) -> None:
        with writing(self._path):
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
        values = {f"{record['split']}/{name}": value for name, value in plotted(record).items()}
        self._run.log(values | {"step": record["step"]})

    def close(self) -> None:
        self._run.finish()
