"""What a study has found so far, from its folder alone: `study.json` says which runs there are, their folders what came
of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax.ablation import statistics as st
from gpt_jax.ablation.verdict import compare_arms, verdict_sentence
from gpt_jax.config.errors import MissingFile
from gpt_jax.runs import metrics
from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.folder import METRICS, RunFolder, Workdir

STUDY, RESULTS, RUNS = "study.json", "results.json", "runs"
OUTCOME, MEASUREMENTS, FAILURE = "outcome.json", "measurements.json", "failure.txt"
CURVE_POINTS = 150


def outcome(folder: RunFolder) -> dict[str, Any] | None:
    """How a run ended ("finished" or "diverged"); None for one that is not at its end."""
    return folder.read_json(OUTCOME) if folder.exists(OUTCOME) else None


def final_loss(folder: RunFolder) -> float | None:
    """The validation loss after the last step, in nats per token; None where there is none, or it is not finite."""
    records = metrics.read(folder, "validation")
    return records[-1]["loss"] if records else None


def write_results(workdir: Workdir) -> dict[str, Any]:
    """Collects what has run and writes `results.json`."""
    found = collect(workdir)
    RunFolder(workdir).write_json(RESULTS, found)
    return found


def collect(workdir: Workdir) -> dict[str, Any]:
    """The results of a study, complete or not: the contract between the runner and the report.

    Raises:
      FileNotFoundError: the folder holds no study.
    """
    folder = RunFolder(workdir)
    if not folder.exists(STUDY):
        raise MissingFile(f"there is no study in {folder}: give the --workdir of experiments.ablate")
    study = folder.read_json(STUDY)
    runs = [_Run(folder, entry) for entry in study["runs"]]
    arms = [_arm(arm, [r for r in runs if r.is_of(arm["name"])], study) for arm in study["arms"]]
    compare_arms(arms, study)
    result = {key: study[key] for key in ("question", "metric", "smallest_difference", "baseline", "seeds", "budget")}
    return result | {
        "verdict": verdict_sentence(arms, study, sum(r.is_done for r in runs), len(runs)),
        "noise": _noise(runs),
        "aa": _aa(runs),
        "arms": arms,
        "repeat": study["repeat"]
        | {
            "together": study["together"],
            "configs": {arm["name"]: arm["config"] for arm in study["arms"]},
            "failures": [r.failure for r in runs if r.failure is not None],
            "wall_seconds": round(sum(r.wall_seconds or 0.0 for r in {r.entry["folder"]: r for r in runs}.values()), 2),
        },
    }


class _Run:
    """A planned run and what its folder holds."""

    def __init__(self, study: RunFolder, entry: Mapping[str, Any]) -> None:
        self.entry, self.folder = entry, RunFolder(study.file(entry["folder"]))
        ended = outcome(self.folder)
        self.status = ended["status"] if ended else "interrupted" if self.folder.exists(METRICS) else "missing"
        self.wall_seconds: float | None = ended["wall_seconds"] if ended else None
        self.is_done = ended is not None
        records = metrics.read(self.folder)
        self.train = [r for r in records if r["split"] == "train"]
        self.validation = [r for r in records if r["split"] == "validation"]
        is_finished = self.status == "finished"
        self.loss: float | None = self.validation[-1]["loss"] if is_finished and self.validation else None
        self.measured = self.folder.read_json(MEASUREMENTS) if self.folder.exists(MEASUREMENTS) else None
        has_failed = not self.is_done and self.folder.exists(FAILURE)
        self.failure = self.folder.read_text(FAILURE).split("\n")[0] if has_failed else None
        if self.status == "diverged":
            self.failure = f"{entry['arm']}, seed {entry['seed']}, learning rate {entry['learning_rate']:g}: diverged"

    def is_of(self, arm: str) -> bool:
        return self.entry["purpose"] == "arm" and self.entry["arm"] == arm

    def described(self) -> dict[str, Any]:
        keys = ("seed", "learning_rate", "folder", "config_hash")
        return {key: self.entry[key] for key in keys} | {"status": self.status, "wall_seconds": self.wall_seconds}

    def numbers(self) -> list[Any]:
        """All that must be equal where two runs are: what was recorded, and the fingerprints of the last checkpoint."""
        clean = [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in [*self.train, *self.validation]]
        if self.status != "finished":
            return clean
        with Checkpoints(self.folder, read_only=True) as checkpoints:
            return [*clean, checkpoints.saved_fingerprints(self.entry["steps"])]


def _arm(arm: Mapping[str, Any], runs: Sequence[_Run], study: Mapping[str, Any]) -> dict[str, Any]:
    """The results of one arm but for its comparison with the baseline."""
    initial = _mean([r.train[0]["loss"] for r in runs if r.train and r.train[0]["loss"] is not None])
    by_rate: dict[float, list[_Run]] = {}
    for run in runs:
        if run.is_done:
            by_rate.setdefault(run.entry["learning_rate"], []).append(run)
    losses = {rate: [r.loss for r in group] for rate, group in sorted(by_rate.items())}
    best = min(losses, key=lambda rate: _badness(losses[rate])) if losses else None
    chosen = [] if best is None else by_rate[best]
    summary = st.summarize([r.loss for r in chosen if r.loss is not None])
    grid = study["learning_rates"]
    keys = ("name", "changes", "parameters", "parameters_non_embedding", "flops_per_token", "kv_bytes_per_token")
    return {key: arm[key] for key in keys} | {
        "measured_decode_tokens_per_second": _median(_measured(chosen, "measured_decode_tokens_per_second")),
        "measured_training_tokens_per_second": _median(_rates(chosen)),
        "measured_peak_bytes": _median(_measured(chosen, "measured_peak_bytes")),
        "best_learning_rate": best,
        "learning_rate_at_edge": len(grid) > 1 and best in (min(grid), max(grid)),
        "learning_rate_sensitivity": None if initial is None else st.learning_rate_sensitivity(losses, initial),
        "mean": summary.mean,
        "std": summary.std,
        "n": summary.n,
        "interval": summary.interval,
        "versus_baseline": None,
        "is_ranked": arm["is_ranked"],
        "budget_ratio": arm["budget_ratio"],
        "losses": {str(r.entry["seed"]): r.loss for r in chosen},
        "by_learning_rate": {f"{rate:g}": values for rate, values in losses.items()},
        "curves": {"train": _curve([r.train for r in chosen]), "validation": _curve([r.validation for r in chosen])},
        "loss_by_position": [row[:2] for row in _points(_measured(chosen, "loss_by_position"))],
        "extrapolation": _points(_measured(chosen, "extrapolation")),
        "accuracy_by": _accuracy(_measured(chosen, "accuracy_by")),
        "diagnostics": _diagnostics(chosen),
        "runs": [r.described() for r in runs],
    }


def _badness(losses: Sequence[float | None]) -> tuple[int, float]:
    """What the best learning rate has least of: runs that diverged, then mean loss."""
    mean = _mean(losses)
    return sum(loss is None for loss in losses), math.inf if mean is None else mean


def _measured(runs: Sequence[_Run], key: str) -> list[Any]:
    return [r.measured[key] for r in runs if r.measured is not None and r.measured[key] is not None]


def _rates(runs: Sequence[_Run]) -> list[float | None]:
    """Tokens per second while each step was taken, of all runs that trained together."""
    found = [(r["tokens_per_second"], run.entry["together"]) for run in runs for r in run.train]
    return [None if rate is None else rate * together for rate, together in found]


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _median(values: Sequence[float | int | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def _curve(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[float | int]]:
    """[[step, mean, least, most], …] over the runs, neighbouring steps averaged where they are many."""
    by_run = [{r["step"]: r["loss"] for r in records if r["loss"] is not None} for records in runs]
    steps = sorted(set.intersection(*map(set, by_run))) if by_run else []
    if not steps:
        return []
    values = np.array([[losses[step] for step in steps] for losses in by_run])
    result = []
    for part in np.array_split(np.arange(len(steps)), min(len(steps), CURVE_POINTS)):
        means = values[:, part].mean(axis=1)
        middle = steps[part[-1]] if len(part) == 1 else float(np.mean([steps[i] for i in part]))
        result.append([middle, float(means.mean()), float(means.min()), float(means.max())])
    return result


def _points(runs: Sequence[Sequence[Sequence[float | int]]]) -> list[list[float | int]]:
    """[[x, mean, least, most], …] over the runs, of the x that all have."""
    tables = [{x: value for x, value in run} for run in runs]
    shared = [x for x in tables[0] if all(x in t for t in tables)] if tables else []
    columns = {x: np.array([t[x] for t in tables]) for x in shared}
    return [[x, float(v.mean()), float(v.min()), float(v.max())] for x, v in columns.items()]


def _accuracy(found: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not found:
        return None
    return {"label": found[0]["label"], "points": [row[:2] for row in _points([f["points"] for f in found])]}


def _diagnostics(runs: Sequence[_Run]) -> dict[str, float | None]:
    found = _measured(runs, "diagnostics")
    return {key: _mean([f[key] for f in found]) for key in ("attention_entropy", "sink_mass", "largest_logit")} | {
        "gradient_norm": _median([r["grad_norm"] for run in runs for r in run.train]),
        "skipped_steps": _mean([run.train[-1]["skipped"] for run in runs if run.train]),
    }


def _noise(runs: Sequence[_Run]) -> dict[str, Any] | None:
    losses = [r.loss for r in runs if r.entry["purpose"] == "noise" and r.loss is not None]
    summary = st.summarize(losses)
    return {"mean": summary.mean, "std": summary.std, "n": summary.n} if losses else None


def _aa(runs: Sequence[_Run]) -> dict[str, bool] | None:
    """Whether the copies of the baseline's runs came out bit-equal; None while none of the pairs is done."""
    equal = []
    for copy in (r for r in runs if r.entry["purpose"] == "aa" and r.is_done):
        for run in (r for r in runs if r.entry["purpose"] == "arm" and r.is_done):
            if all(run.entry[key] == copy.entry[key] for key in ("seed", "learning_rate", "config_hash")):
                equal.append(run.numbers() == copy.numbers())
    return {"equal": all(equal)} if equal else None
