"""Why runs that were finished once are made again, and which a shard must not make again."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_jax.ablation import study_runs
from gpt_jax.ablation.addresses import is_measured, is_trained
from gpt_jax.ablation.planned import PlannedRun
from gpt_jax.ablation.schema import RUNS, RunOutcome
from gpt_jax.ablation.study_runs import PAIRED
from gpt_jax.config.errors import ConfigError
from gpt_jax.runs.address import changed_parts
from gpt_jax.runs.folder import RunFolder

MOST_NAMED = 4


def check_shard(runs: Sequence[PlannedRun], study: RunFolder) -> None:
    """Refuses a shard whose `runs` were finished elsewhere, by another kind of device, other libraries or numerics: the
    pairs of a seed would straddle both, or another host's work be done again.

    Raises:
      ConfigError: there is such a run; the message says in what it differs.
    """
    names = _names(study)
    for run in runs:
        if is_trained(RunFolder(study.file(RUNS) / run.folder)):
            continue
        parts = {part: run.address.parts[part] for part in PAIRED}
        for ended in _earlier(run, names, study):
            before = ended.address or {}
            changed = changed_parts({part: before[part] for part in PAIRED if part in before}, parts)
            if changed:
                raise ConfigError(
                    f"{run.name} was finished with another {changed[0]}, and a pair must not straddle two: run this"
                    " shard where it ran first, or leave --shard out to run the whole study here"
                )


def redone(runs: Sequence[PlannedRun], study: RunFolder) -> list[str]:
    """A line for people on the finished runs that are trained again, and one on those that are measured again."""
    reasons: dict[str, None] = {}
    again = stale = 0
    names = _names(study)
    for run in runs:
        folder = RunFolder(study.file(RUNS) / run.folder)
        if is_trained(folder):
            stale += not is_measured(folder, run.measured_by)
            continue
        found = _earlier(run, names, study)
        if found:
            again += 1
            changes: list[list[str]] = [
                ["their addresses were not recorded"]
                if ended.address is None
                else changed_parts(ended.address, run.address.parts)
                for ended in found
            ]
            nearest = min(changes, key=len)
            reasons |= dict.fromkeys(nearest)
    lines = []
    if again:
        named = list(reasons)[:MOST_NAMED]
        more = [f"{len(reasons) - len(named)} more"] if len(reasons) > len(named) else []
        lines.append(f"{again} finished runs are trained again, since this changed: {'; '.join([*named, *more])}")
    if stale:
        lines.append(f"{stale} finished runs are measured again: what is measured, or the code that measures, changed")
    return lines


def _names(study: RunFolder) -> list[str]:
    return [path.name for path in study.file(RUNS).iterdir()] if study.exists(RUNS) else []


def _earlier(run: PlannedRun, names: Sequence[str], study: RunFolder) -> list[RunOutcome]:
    """How other runs ended that have the run's arm, seed and settings, and another address."""
    label = run.folder.rpartition("-")[0]
    folders = [RunFolder(study.file(RUNS) / name) for name in names if name.rpartition("-")[0] == label]
    return [ended for ended in map(study_runs.outcome, folders) if ended is not None]
