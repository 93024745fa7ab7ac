"""What a study has found so far, from its folder alone: `study.json` lists the runs, and their folders hold what came
of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np

from gpt_jax.ablation import history, records, secondary, values
from gpt_jax.ablation import statistics as st
from gpt_jax.ablation.arms import arm_results, own_rate, seeds_of, values_of
from gpt_jax.ablation.contrasts import contrasts
from gpt_jax.ablation.endpoint import Endpoint, ToTarget
from gpt_jax.ablation.findings import ArmResults, Copies, Noise, Repeat, StudyResults
from gpt_jax.ablation.log import read_log
from gpt_jax.ablation.marks import marks
from gpt_jax.ablation.schema import (
    RESULTS,
    STUDY,
    ArmRecord,
    Origin,
    Rules,
    StudyRecord,
)
from gpt_jax.ablation.sentence import verdict_sentence
from gpt_jax.ablation.study_runs import StudyRun
from gpt_jax.ablation.values import SeedRuns
from gpt_jax.ablation.verdict import compare_arms
from gpt_jax.config.errors import MissingFile
from gpt_jax.runs.folder import RunFolder, Workdir

Seeds = Mapping[str, SeedRuns]


def write_results(workdir: Workdir) -> StudyResults:
    """Collects the results and writes `results.json`; the log notes that they are looked at, and the claim what came
    out.
    """
    folder = RunFolder(workdir)
    if folder.exists(STUDY):
        history.look(folder, history.under_claim(records.read_study(folder), folder))
    found = collect(workdir)
    records.write(found, folder, RESULTS)
    history.finish(folder, found)
    return found


def collect(workdir: Workdir) -> StudyResults:
    """The results of a study, complete or not.

    Raises:
      MissingFile: the folder holds no study.
      ConfigError: a file of the study is damaged.
    """
    folder = RunFolder(workdir)
    if not folder.exists(STUDY):
        raise MissingFile(f"there is no study in {folder}: give the --workdir of experiments.ablate")
    study = history.under_claim(records.read_study(folder), folder)
    endpoint, runs = values.endpoint_of(study), [StudyRun(folder, planned, study) for planned in study.runs]
    seeds = {arm.name: _seeds(arm, runs, study) for arm in study.arms}
    paired = {name: _paired(found, seeds[study.baseline]) for name, found in seeds.items()}
    shared = _shared_machine(endpoint, study)
    arms: Sequence[ArmResults] = [
        replace(
            arm_results(
                arm,
                [run for run in runs if run.is_of(arm.name)],
                seeds[arm.name],
                {} if shared else values_of(endpoint, paired[arm.name]),
            ),
            answers=secondary.answers_of(study, paired[arm.name]),
        )
        for arm in study.arms
    ]
    rows, copies = {arm.name: rows_by_seed(endpoint, paired[arm.name], arm) for arm in arms}, _aa(runs)
    arms = compare_arms(arms, study, rows)
    return StudyResults(
        **{field.name: getattr(study, field.name) for field in fields(Rules)},
        question=study.question,
        baseline=study.baseline,
        seeds=study.seeds,
        budget=study.budget,
        setup=study.setup,
        devices=tuple(dict.fromkeys(d for d in (run.device() for run in runs) if d is not None)),
        jobs=study.jobs,
        is_smoke=study.is_smoke,
        is_forced=study.is_forced,
        marks=(*marks(folder, study, arms), *shared, *_checked(copies), *_unchecked(runs), *_unpaired(seeds, paired)),
        log=read_log(folder),
        verdict=verdict_sentence(arms, study, sum(r.is_done for r in runs), len(runs)),
        noise=_noise(endpoint, study, runs),
        aa=copies,
        arms=tuple(arms),
        contrasts=contrasts(arms, study, rows),
        secondary=secondary.judged(arms, study),
        secondary_comparisons=secondary.comparisons(arms, study),
        repeat=_repeat(study, runs),
    )


def _seeds(arm: ArmRecord, runs: Sequence[StudyRun], study: StudyRecord) -> dict[str, SeedRuns]:
    own = [run for run in runs if run.is_of(arm.name)]
    return seeds_of(arm, own, own_rate(arm, own, study))


def rows_by_seed(endpoint: Endpoint, seeds: Seeds, arm: ArmResults) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Sums and weights of the validation rows, (R,) each, of the seeds that have a value: Σ sums / Σ weights is it."""
    found = {seed: values.rows(endpoint, seeds[seed]) for seed, value in arm.values.items() if value is not None}
    return {seed: rows for seed, rows in found.items() if rows is not None}


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _paired(seeds: Seeds, baseline: Seeds) -> dict[str, SeedRuns]:
    """Without the seeds whose runs ended on another kind of device, or with other libraries or numeric settings, than
    the baseline's.
    """
    return {seed: runs for seed, runs in seeds.items() if seed not in baseline or _is_pair(runs, baseline[seed])}


def _is_pair(ours: SeedRuns, theirs: SeedRuns) -> bool:
    done = [run for run in (ours.own, theirs.own, *ours.at_rates, *theirs.at_rates) if run.is_done]
    return all(run.pairs_with(done[0]) for run in done)


def _unpaired(seeds: Mapping[str, Seeds], paired: Mapping[str, Seeds]) -> list[str]:
    """What the headline says of each arm with seeds that make no pairs."""
    left_out = {name: [seed for seed in found if seed not in paired[name]] for name, found in seeds.items()}
    return [
        f"{name}: left out seed{'s' * (len(found) > 1)} {', '.join(found)}, which ran on another kind of device or with"
        " other versions or numeric settings than the baseline’s"
        for name, found in left_out.items()
        if found
    ]


def _shared_machine(endpoint: Endpoint, study: StudyRecord) -> list[str]:
    """Why seconds can't be compared, if the endpoint is made of them and runs shared the machine."""
    together = max((run.together for run in study.runs), default=1)
    if not (isinstance(endpoint, ToTarget) and endpoint.cost == "seconds") or max(study.jobs, together) == 1:
        return []
    return ["the runs shared the machine, so that their seconds decide nothing: run one job, and one seed at a time"]


# ── the study's own checks ───────────────────────────────────────────────────────────────────────────────────────────


def _repeat(study: StudyRecord, runs: Sequence[StudyRun]) -> Repeat:
    once = {r.planned.folder: r for r in runs}.values()
    return Repeat(
        **{field.name: getattr(study.repeat, field.name) for field in fields(Origin)},
        together=study.together,
        configs={arm.name: arm.config for arm in study.arms},
        failures=tuple(r.failure for r in runs if r.failure is not None),
        wall_seconds=round(sum(r.wall_seconds or 0.0 for r in once), 2),
    )


def _noise(endpoint: Endpoint, study: StudyRecord, runs: Sequence[StudyRun]) -> Noise | None:
    """Of the fresh seeds of the baseline; no mean where one failed."""
    arm = next(arm for arm in study.arms if arm.name == study.baseline)
    fresh = [run for run in runs if run.planned.purpose == "noise"]
    found = values_of(endpoint, seeds_of(arm, fresh, own_rate(arm, fresh, study))).values()
    summary = st.summarize([] if None in found else [value for value in found if value is not None])
    return Noise(summary.mean, summary.std, len(found)) if found else None


def _checked(copies: Copies | None) -> tuple[str, ...]:
    if copies is None or copies.equal is not False:
        return ()
    return ("the determinism check failed: a repeated run was not bit-equal to the first, so trust no difference",)


def _aa(runs: Sequence[StudyRun]) -> Copies | None:
    """Whether the copies of the baseline's runs came out bit-equal on equal devices; None while no pair is done."""
    equal = [run.numbers() == copy.numbers() for copy, own in _copies(runs) for run in own if run.pairs_with(copy)]
    return Copies(all(equal), len(equal)) if equal else None


def _unchecked(runs: Sequence[StudyRun]) -> list[str]:
    """What the headline says where the copy of a shard is no check of what ran there."""
    lost = [copy for copy, own in _copies(runs) if own and not any(run.pairs_with(copy) for run in own)]
    seeds = ", ".join(str(copy.planned.seed) for copy in lost)
    said = "ran on another kind of device or with other versions or numeric settings than its run"
    return [f"determinism is not checked at seed {seeds}: the copy {said}"] if lost else []


def _copies(runs: Sequence[StudyRun]) -> list[tuple[StudyRun, list[StudyRun]]]:
    """Each copy of a run of the baseline that has ended, and the runs that it is the copy of, on whatever devices."""
    same = ("seed", "learning_rate", "config_hash")
    done = [run for run in runs if run.planned.purpose == "arm" and run.is_done]
    return [
        (copy, [r for r in done if all(getattr(r.planned, n) == getattr(copy.planned, n) for n in same)])
        for copy in runs
        if copy.planned.purpose == "aa" and copy.is_done
    ]
