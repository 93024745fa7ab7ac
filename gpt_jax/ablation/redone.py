"""Why runs that were finished once are made again."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_jax.ablation import results
from gpt_jax.ablation.addresses import is_measured, is_trained
from gpt_jax.ablation.plan import PlannedRun
from gpt_jax.runs.address import changed_parts
from gpt_jax.runs.folder import RunFolder

MOST_NAMED = 4


def redone(runs: Sequence[PlannedRun], study: RunFolder) -> list[str]:
    """A line for people on the finished runs that are trained again, and one on those that are measured again."""
    reasons: dict[str, None] = {}
    again = stale = 0
    names = [path.name for path in study.file(results.RUNS).iterdir()] if study.exists(results.RUNS) else []
    for run in runs:
        folder = RunFolder(study.file(results.RUNS) / run.folder)
        if is_trained(folder):
            stale += not is_measured(folder, run.measured_by)
            continue
        label = run.folder.rpartition("-")[0]
        earlier = [RunFolder(study.file(results.RUNS) / name) for name in names if name.rpartition("-")[0] == label]
        found = [ended for ended in map(results.outcome, earlier) if ended is not None]
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
