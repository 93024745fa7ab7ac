"""What a study remembers: its claim when it begins, each start, look and change, and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax

from gpt_jax.ablation import changes, log, records
from gpt_jax.ablation.claim import (
    AddressedRun,
    ArmOutcome,
    Change,
    Claim,
    ClaimOutcome,
    Frozen,
    claimed,
    code_address,
    read_claim,
    update,
    write_frozen,
)
from gpt_jax.ablation.findings import ArmResults, Event, StudyResults
from gpt_jax.ablation.schema import OUTCOME, RUNS, STUDY, RunOutcome, StudyRecord
from gpt_jax.ablation.study import Study
from gpt_jax.config.errors import ConfigError
from gpt_jax.runs import metrics
from gpt_jax.runs.environment import git_revision, versions
from gpt_jax.runs.folder import METRICS, RunFolder

# ── a start ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def begin(folder: RunFolder, study: Study, data_hash: str | None, command: str, is_forced: bool) -> None:
    """Freezes the study, or compares it with the claim that was frozen. To be called before `study.json` is written.

    A change before any run of the verdict has a validation loss replaces the claim; a later one is added to it and
    stands in the headline. More seeds, up to the claim's `most_seeds`, are no change.

    Raises:
      ConfigError: more seeds than the claim allows.
    """
    now = Frozen(
        study=claimed(study, data_hash),
        is_forced=is_forced,
        command=command,
        time=log.now(),
        code=code_address(),
        git=git_revision(),
        versions=versions(),
        devices=device_kinds(),
    )
    with log.alone(folder):
        earlier, found = log.read_log(folder), read_claim(folder)
        done = max([runs_done(folder), *(event.runs_done for event in earlier)])
        events = []
        if done and not earlier:
            events.append(log.event(log.CHANGE, f"the log begins after {done} runs had finished", done))
        if found is None:
            if done:
                events.append(log.event(log.CHANGE, f"the claim was written after {done} runs had finished", done))
            write_frozen(folder, replace(now, runs_before=done))
        elif done == 0 and not _shows_losses(folder):
            events += _replaced(folder, found[0], now)
        else:
            events += _changed(folder, found[0], now, done, any(event.what == log.LOOK for event in earlier))
        seeds, planned = len(study.seeds), _planned(folder, study)
        of = "" if seeds == planned else f" ({planned} planned)"
        text = f"{command}; seeds: {seeds}{of}; devices: {', '.join(now.devices)}"
        log.append(folder, [*events, log.event(log.START, text, done)])


def _replaced(folder: RunFolder, old: Claim, now: Frozen) -> list[Event]:
    """The claim of a study of which nobody can have seen a result."""
    found = [changes.logged(*c) for c in changes.differences(changes.settings(old.frozen), changes.settings(now))]
    before, after = len(old.frozen.study.seeds), len(now.study.seeds)
    found += [changes.logged("the number of seeds", str(before), str(after))] if before != after else []
    if found:
        write_frozen(folder, now)
    return [log.event(log.CHANGE, text, 0) for text in found]


def _changed(folder: RunFolder, old: Claim, now: Frozen, done: int, is_seen: bool) -> list[Event]:
    """Adds to the claim what has changed since; returns what the log says."""
    most = old.frozen.study.most_seeds
    if len(now.study.seeds) > most:
        raise ConfigError(
            f"the claim of {folder} allows {most} seeds, not {len(now.study.seeds)}: plan a study of more seeds in"
            " another --workdir"
        )
    known = changes.in_force(changes.settings(old.frozen), old.changes)
    found = changes.differences(known, changes.settings(now))
    more = tuple(
        Change(time=now.time, what=what, before=before, after=after, runs_done=done, is_seen=is_seen)
        for what, before, after in found
    )
    before, after = len(old.study.seeds), len(now.study.seeds)
    present = None if now.study == old.frozen.study else now.study
    if more or present != old.present:
        update(folder, present=present, changes=(*old.changes, *more))
    texts = [changes.logged(change.what, change.before, change.after) for change in more]
    texts += [changes.logged("the number of seeds", str(before), str(after))] if before != after else []
    return [log.event(log.CHANGE, text, done) for text in texts]


def _planned(folder: RunFolder, study: Study) -> int:
    found = read_claim(folder)
    return len(study.seeds) if found is None else len(found[0].frozen.study.seeds)


def device_kinds() -> tuple[str, ...]:
    """The kinds of this process's devices, each once."""
    return tuple(dict.fromkeys(device.device_kind for device in jax.devices()))


# ── a look ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def runs_done(folder: RunFolder) -> int:
    """How many runs of the verdict have ended; without `study.json`, how many runs."""
    if folder.exists(STUDY):
        return sum(_by_run(folder, records.read_study(folder)).values())
    if not folder.exists(RUNS):
        return 0
    return sum((run / OUTCOME).exists() for run in folder.file(RUNS).iterdir())


def _by_run(folder: RunFolder, study: StudyRecord) -> dict[str, bool]:
    """Folder → whether the run has ended, of the runs of the verdict."""
    planned = dict.fromkeys(run.folder for run in study.runs if run.purpose == "arm")
    return {name: (folder.file(name) / OUTCOME).exists() for name in planned}


def _shows_losses(folder: RunFolder) -> bool:
    """Whether a run of the verdict has recorded a validation loss, also if it was stopped before its end."""
    if not folder.exists(STUDY):
        return False
    runs = (RunFolder(folder.file(name)) for name in _by_run(folder, records.read_study(folder)))
    return any(run.exists(METRICS) and metrics.read(run, "validation") for run in runs)


def look(folder: RunFolder, study: StudyRecord) -> None:
    """Notes in the log that results are looked at: how many seeds are done in all arms. A look that sees what the last
    one saw is not noted again, nor one before any run of the verdict has ended.
    """
    by_run = _by_run(folder, study)
    done = sum(by_run.values())
    if not done:
        return
    open_seeds = {run.seed for run in study.runs if run.purpose == "arm" and not by_run[run.folder]}
    seeds = len(set(study.seeds) - open_seeds)
    planned = len(study.seeds) if study.planned_seeds is None else study.planned_seeds
    text = f"results of {done} runs; seeds done in all arms: {seeds} of {planned} planned"
    with log.alone(folder):
        since = [event for event in log.read_log(folder) if event.what != log.START]
        if not since or (since[-1].what, since[-1].text, since[-1].runs_done) != (log.LOOK, text, done):
            log.append(folder, [log.event(log.LOOK, text, done)])


def under_claim(study: StudyRecord, folder: RunFolder) -> StudyRecord:
    """`study` with the numbers of seeds that its claim planned and allows."""
    found = read_claim(folder)
    if found is None:
        return study
    frozen = found[0].frozen.study
    return replace(study, planned_seeds=len(frozen.seeds), most_seeds=frozen.most_seeds)


# ── what came out ────────────────────────────────────────────────────────────────────────────────────────────────────


def finish(folder: RunFolder, results: StudyResults) -> None:
    """Writes the outcome into the claim once all runs of the verdict have ended, at all planned seeds."""
    found, statuses = read_claim(folder), [run.status for arm in results.arms for run in arm.runs]
    if found is None or not results.verdict or not statuses or not set(statuses) <= {"finished", "diverged"}:
        return
    claim = found[0]
    if len(results.seeds or ()) < len(claim.frozen.study.seeds):
        return
    shared, runs = _addresses(folder, results.arms)
    outcome = ClaimOutcome(
        time=log.now(),
        verdict=results.verdict,
        arms={arm.name: _outcome(arm) for arm in results.arms},
        together=1 if results.repeat.together is None else results.repeat.together.count,
        shared=shared,
        runs=runs,
        versions=versions(),
        devices=tuple(dict.fromkeys(str(kind) for kind in _kinds(shared, runs))),
    )
    known = claim.outcome
    if known is None or replace(known, time=outcome.time, versions=outcome.versions) != outcome:
        with log.alone(folder):
            update(folder, outcome=outcome)


def _outcome(arm: ArmResults) -> ArmOutcome:
    versus = arm.versus_baseline
    answers = {
        endpoint: {seed: None if answered is None else answered.value for seed, answered in by_seed.items()}
        for endpoint, by_seed in arm.answers.items()
    }
    if versus is None:
        return ArmOutcome(values=arm.values, answers=answers)
    return ArmOutcome(
        values=arm.values,
        answers=answers,
        difference=versus.mean,
        interval=versus.interval,
        p=versus.p,
        verdict=versus.verdict,
        reason=versus.reason,
    )


def _addresses(
    folder: RunFolder, arms: Sequence[ArmResults]
) -> tuple[dict[str, Mapping[str, Any]], dict[str, AddressedRun]]:
    """The parts that all runs share, and the runs with the rest of theirs."""
    known = [(arm.name, run) for arm in arms for run in arm.runs if run.folder is not None]
    ends = [records.read(RunOutcome, RunFolder(folder.file(run.folder or "")), OUTCOME) for _, run in known]
    parts: list[Mapping[str, Mapping[str, Any]]] = [end.address or {} for end in ends]
    first = parts[0] if parts else {}
    shared = {name: value for name, value in first.items() if all(name in p and p[name] == value for p in parts)}
    runs = {
        run.folder or "": AddressedRun(
            arm=arm,
            seed=run.seed or 0,
            learning_rate=float(run.learning_rate or 0.0),
            parts={name: value for name, value in own.items() if name not in shared},
        )
        for (arm, run), own in zip(known, parts, strict=True)
    }
    return shared, runs


def _kinds(shared: Mapping[str, Mapping[str, Any]], runs: Mapping[str, AddressedRun]) -> list[Any]:
    found = [{**shared, **run.parts} for run in runs.values()]
    return [parts["devices"]["kind"] for parts in found if "devices" in parts]
