"""The two stages of a study that tunes: the trials of each arm, then the runs that decide, at each arm's own best.

A plan goes on from what has finished in the study's folder. Once settings are chosen, `study.json` holds them, and they
stay for as long as the arms, the data and what the tuning may try are the same: more seeds do not tune again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from gpt_jax.ablation import log, records, study_runs, tuning
from gpt_jax.ablation.endpoint import BITS_PER_BYTE
from gpt_jax.ablation.plan import StudyPlan, describe, planned_record
from gpt_jax.ablation.planned import Group, PlannedRun, in_words
from gpt_jax.ablation.schema import RUNS, STUDY, Grouping, Origin, PlannedRunRecord, Trial, Tuned
from gpt_jax.config.conversion import to_dict
from gpt_jax.runs import metrics
from gpt_jax.runs.folder import RunFolder

Shard = tuple[int, int]  # (i, n): the parts i, i + n, i + 2n … of a study
WHOLE: Shard = (0, 1)


def advanced(plan: StudyPlan, folder: RunFolder, shard: Shard = WHOLE) -> StudyPlan:
    """The plan with all that follows from the trials that have finished: the next trials, or the chosen settings and
    the runs that decide.
    """
    if not plan.is_tuning:
        return as_made(plan, folder, shard)
    chosen = _recorded_choice(plan, folder)
    if chosen is not None:
        best = {name: found.best for name, found in chosen.items() if found.best is not None}
        plan = replace(plan, trials=(), tuned=chosen, groups=plan.planner.verdict(best))
        return as_made(plan, folder, shard)
    while True:
        plan = as_made(plan, folder, shard)
        losses = _losses(plan, folder)
        found, before = tuning.search(plan.study, losses), len(plan.trials)
        tuned = {
            name: tuning.tuned(tried, losses[name], found.is_over, *_spent(plan, name, folder))
            for name, tried in found.tried.items()
        }
        plan = replace(plan, tuned=tuned)
        if found.is_over:
            best = {name: tuning.best(tried, losses[name]) for name, tried in found.tried.items()}
            return as_made(replace(plan, groups=plan.planner.verdict(best)), folder, shard)
        trials = plan.planner.trials(found.tried)
        if len(trials) == before:
            return plan
        plan = replace(plan, trials=trials)


def chosen_in_words(plan: StudyPlan) -> str:
    """What the tuning chose, as a line for people."""
    return "; ".join(
        f"{name}: {in_words(found.best)}{', at the edge of the rates tried' if found.is_at_edge else ''}"
        for name, found in plan.tuned.items()
        if found.best is not None
    )


def write_record(
    plan: StudyPlan, folder: RunFolder, origin: Origin, grouping: Grouping, forced: bool, jobs: int, shard: Shard
) -> None:
    """Writes `study.json`. Runs of other shards stay where those shards have them."""
    if not folder.writes:
        return
    with log.alone(folder):
        plan = as_made(plan, folder, shard)
        over = [run for run in _recorded_runs(folder) if run.purpose == "tuning"] if not plan.trials else []
        keeps = over if plan.study.tuning is not None else []
        records.write(describe(plan, origin, grouping, forced, jobs, keeps), folder, STUDY)


def rewrite_record(plan: StudyPlan, folder: RunFolder, shard: Shard = WHOLE) -> None:
    """Writes `study.json` again, for a plan that has gone on since."""
    earlier = records.read_study(folder)
    assert earlier.together is not None, "a study that runs has chosen how its seeds train"
    write_record(plan, folder, earlier.repeat, earlier.together, earlier.is_forced, earlier.jobs, shard)


def as_made(plan: StudyPlan, folder: RunFolder, shard: Shard) -> StudyPlan:
    """The plan with the runs of other shards in the folders in which those shards recorded them: another kind of device
    gives a run another address.
    """
    if shard == WHOLE:
        return plan
    known = {_key(run): run.folder.removeprefix(f"{RUNS}/") for run in _recorded_runs(folder)}

    def moved(run: PlannedRun) -> PlannedRun:
        is_mine = run.part % shard[1] == shard[0]
        return run if is_mine else replace(run, folder=known.get(_key(planned_record(run)), run.folder))

    def all_moved(groups: Sequence[Group]) -> tuple[Group, ...]:
        return tuple(tuple(map(moved, group)) for group in groups)

    return replace(plan, trials=all_moved(plan.trials), groups=all_moved(plan.groups))


def _key(run: PlannedRunRecord) -> PlannedRunRecord:
    return replace(run, folder="")


def _recorded_runs(folder: RunFolder) -> Sequence[PlannedRunRecord]:
    return records.read_study(folder).runs if folder.exists(STUDY) else ()


def _recorded_choice(plan: StudyPlan, folder: RunFolder) -> Mapping[str, Tuned] | None:
    """What `study.json` says was chosen; None if it does not, or of other arms, other data or another tuning."""
    if plan.study.tuning is None or not folder.exists(STUDY):
        return None
    earlier = records.read_study(folder)
    if earlier.tuning != _plain(asdict(plan.study.tuning)) or earlier.repeat.data_hash != plan.data_hash:
        return None
    configs = {arm.name: arm.config for arm in earlier.arms}
    if configs != {name: _plain(to_dict(arm.config)) for name, arm in plan.arms.items()}:
        return None
    tuned = {arm.name: arm.tuned for arm in earlier.arms if arm.tuned is not None and arm.tuned.best is not None}
    return tuned if tuned.keys() == configs.keys() else None


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _losses(plan: StudyPlan, folder: RunFolder) -> dict[str, dict[Trial, float]]:
    """The mean losses, by arm, of the settings whose runs have ended with all tuning seeds."""
    found: dict[str, dict[Trial, list[float | None]]] = {name: {} for name in plan.arms}
    for group in plan.trials:
        for run in group:
            found[run.arm].setdefault(run.setting, []).append(loss_of(run, plan, folder))
    return {
        name: {
            setting: sum(known) / len(known)
            for setting, losses in by_setting.items()
            if len(known := [loss for loss in losses if loss is not None]) == len(losses)
        }
        for name, by_setting in found.items()
    }


def loss_of(run: PlannedRun, plan: StudyPlan, folder: RunFolder) -> float | None:
    """The final loss in nats per token, infinite where the run failed; None where it has not ended."""
    place = RunFolder(folder.file(RUNS) / run.folder)
    ended, above = study_runs.outcome(place), plan.study.fails_above
    if ended is None:
        return None
    found = metrics.read(place, "validation")
    if ended.status == "diverged" or not found or found[-1]["loss"] is None:
        return math.inf
    compared = found[-1]["bits_per_byte" if plan.unit == BITS_PER_BYTE else "loss"]
    return math.inf if above is not None and compared > above else found[-1]["loss"]


def _spent(plan: StudyPlan, arm: str, folder: RunFolder) -> tuple[int, float]:
    """How many trials of the arm have ended, and their seconds."""
    runs = [run for group in plan.trials for run in group if run.arm == arm]
    ends = [study_runs.outcome(RunFolder(folder.file(RUNS) / run.folder)) for run in runs]
    return sum(end is not None for end in ends), sum((end.wall_seconds for end in ends if end is not None), 0.0)
