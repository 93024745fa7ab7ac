"""The runs of a study: what was planned of each, and what its folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt_jax.ablation import records
from gpt_jax.ablation.endpoint import BITS_PER_BYTE
from gpt_jax.ablation.findings import RunRecord
from gpt_jax.ablation.schema import (
    FAILURE,
    MEASUREMENTS,
    OUTCOME,
    Measurements,
    PlannedRunRecord,
    RunOutcome,
    StudyRecord,
)
from gpt_jax.runs import metrics
from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.folder import METRICS, RunFolder

PAIRED = ("devices", "libraries", "numerics", "flags")  # parts of an address that are equal in both runs of a pair


def outcome(folder: RunFolder) -> RunOutcome | None:
    """How a run ended; None while it has not."""
    return records.read(RunOutcome, folder, OUTCOME) if folder.exists(OUTCOME) else None


def measurements(folder: RunFolder) -> Measurements | None:
    """What was measured of a run; None before it was."""
    return records.read(Measurements, folder, MEASUREMENTS) if folder.exists(MEASUREMENTS) else None


class StudyRun:
    """A planned run of a study and what its folder holds.

    `loss` is the final validation loss, in bits per byte where the study compares in them, else in nats per token; None
    where the run has not ended, or failed: it diverged, the loss is not finite, or above the study's `fails_above`.
    """

    def __init__(self, place: RunFolder, planned: PlannedRunRecord, study: StudyRecord) -> None:
        self.planned, self.folder = planned, RunFolder(place.file(planned.folder))
        ended = outcome(self.folder)
        self.status = ended.status if ended else "interrupted" if self.folder.exists(METRICS) else "missing"
        self.wall_seconds = ended.wall_seconds if ended else None
        self.address = ended.address if ended else None
        self.is_done = ended is not None
        found = metrics.read(self.folder)
        self.train = [r for r in found if r["split"] == "train"]
        self.validation = [r for r in found if r["split"] == "validation"]
        self.measured = measurements(self.folder)
        self._name = "bits_per_byte" if study.unit == BITS_PER_BYTE else "loss"
        last = self.validation[-1][self._name] if self.status == "finished" and self.validation else None
        is_above = last is not None and study.fails_above is not None and last > study.fails_above
        self.has_failed = self.is_done and (last is None or is_above)
        self.loss: float | None = None if is_above else last
        self.failure = self._failure(
            f"its final validation loss of {last:.4g} is above {study.fails_above:g}" if is_above else None
        )

    def _failure(self, rule: str | None) -> str | None:
        """What went wrong, in a line that names the run."""
        if not self.is_done:
            return self.folder.read_text(FAILURE).split("\n")[0] if self.folder.exists(FAILURE) else None
        if not self.has_failed:
            return None
        p = self.planned
        reason = "diverged" if self.status == "diverged" else rule or "its final validation loss is not finite"
        return f"{p.arm}, seed {p.seed}, learning rate {p.learning_rate:g}: {reason}"

    @property
    def initial_loss(self) -> float | None:
        """The loss of the first batch before any update, in the unit of `loss`; None where it is not known."""
        return None if not self.train or self.train[0]["loss"] is None else self.train[0]["loss"] * self.scale

    @property
    def scale(self) -> float:
        """The unit of `loss` per nat per token."""
        known = [r for r in self.validation if r["loss"]]
        return known[0][self._name] / known[0]["loss"] if known else 1.0

    def is_of(self, arm: str) -> bool:
        """Whether the run measures this arm."""
        return self.planned.purpose == "arm" and self.planned.arm == arm

    def pairs_with(self, other: StudyRun) -> bool:
        """Whether both ran on the same kind of devices with the same libraries, numeric settings and compiler flags.
        Runs from before addresses were recorded pair with each other only.
        """
        return self.surroundings() == other.surroundings()

    def surroundings(self) -> Mapping[str, Any] | None:
        """The parts of the run's address that both runs of a pair share; None where they were not recorded."""
        return None if self.address is None else {part: self.address.get(part) for part in PAIRED}

    def device(self) -> str | None:
        """The devices of the run in words; None where they were not recorded."""
        found = None if self.address is None else self.address.get("devices")
        if not found:
            return None
        processes = f", {found['processes']} processes" if found["processes"] > 1 else ""
        return f"{found['count']} × {found['kind']} ({found['machine']}{processes})"

    def scores(self, rows: int, tokens: int) -> dict[str, float]:
        """The scores of the model's heads after the last step, of all of it and not of single layers; {} where the run
        has not ended, or records none that are read on so many rows and tokens.
        """
        last = metrics.read(self.folder, metrics.DIAGNOSTICS)[-1:] if self.is_done else []
        return {
            name: float(value)
            for record in last
            if (record["step"], record["rows"], record["tokens"]) == (self.planned.steps, rows, tokens)
            for name, value in metrics.plotted(record).items()
            if "/" not in name
        }

    def answered(self, questions: int) -> list[dict[str, Any]]:
        """What the run answered while it trained, where it was asked so many questions of each kind."""
        return [r for r in metrics.read(self.folder, metrics.SUITE) if r["questions"] == questions]

    def described(self) -> RunRecord:
        """The run as `results.json` holds it."""
        p = self.planned
        return RunRecord(p.seed, p.learning_rate, p.folder, self.status, p.config_hash, self.wall_seconds)

    def numbers(self) -> list[Any]:
        """All that must be equal in equal runs: the records, and the fingerprints of the last checkpoint."""
        clean = [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in [*self.train, *self.validation]]
        if self.status != "finished":
            return clean
        with Checkpoints(self.folder, read_only=True) as checkpoints:
            return [*clean, checkpoints.saved_fingerprints(self.planned.steps)]
