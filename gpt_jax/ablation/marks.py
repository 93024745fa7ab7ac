"""What a study's headline must say beside its verdict."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_jax.ablation import changes
from gpt_jax.ablation.claim import read_claim
from gpt_jax.ablation.findings import ArmResults
from gpt_jax.ablation.history import runs_done
from gpt_jax.ablation.log import read_log
from gpt_jax.ablation.schema import StudyRecord
from gpt_jax.runs.folder import RunFolder

ALIKE = 1e-6  # of the loss


def marks(folder: RunFolder, study: StudyRecord, arms: Sequence[ArmResults]) -> tuple[str, ...]:
    """Short sentences without a full stop: a tiny size, changes of the claim after results were seen, a claim or log
    that is missing or was edited, arms off the budget, learning rates that nothing tuned or that a grid cut off, and
    arms that seem to be the baseline's function.
    """
    smoke = ("a smoke test: decides nothing",) if study.is_smoke else ()
    return (*smoke, *_memory(folder), *_budgets(study, arms), *_rates(study, arms), *_alike(study, arms))


def _memory(folder: RunFolder) -> tuple[str, ...]:
    found, done = read_claim(folder), runs_done(folder)
    if found is None:
        return (f"there is no claim: nothing says what was planned before {_ended(done)}",) if done else ()
    claim, is_intact = found
    said = [] if is_intact else ["the claim was edited after it was written"]
    if claim.frozen.runs_before:
        said.append(f"the claim was written after {_ended(claim.frozen.runs_before)}")
    events = read_log(folder)
    before = events[0].runs_done if events else done
    if before and not claim.frozen.runs_before:
        said.append(f"the log of starts and looks begins after {_ended(before)}")
    return (*said, *changes.marked(claim.changes))


def _ended(runs: int) -> str:
    return f"{runs} run{'s' * (runs > 1)} had finished"


def _budgets(study: StudyRecord, arms: Sequence[ArmResults]) -> tuple[str, ...]:
    match, said = study.budget.match, []
    for arm in arms:
        if arm.is_ranked and not arm.is_forced:
            continue
        costs = f"its {match} are {arm.budget_ratio:.2f} × the baseline’s"
        if arm.is_ranked:
            said.append(f"{arm.name} is ranked though {costs}, by --force")
        else:
            said.append(f"{arm.name} is not ranked: {costs}")
    return tuple(said)


def _rates(study: StudyRecord, arms: Sequence[ArmResults]) -> tuple[str, ...]:
    if study.tuning is None and not study.learning_rates:
        return ("at the baseline’s learning rate: nothing was tuned",)
    at_edge = [arm.name for arm in arms if arm.tuned is not None and arm.tuned.is_at_edge]
    if not at_edge:
        return ()
    return (f"the best learning rate of {' and '.join(at_edge)} is at the edge of the rates that were tried",)


def _alike(study: StudyRecord, arms: Sequence[ArmResults]) -> tuple[str, ...]:
    """Two spellings of one function may compile to different programs, as a window that spans the whole context."""
    theirs = next(arm.losses for arm in arms if arm.name == study.baseline)
    said = []
    for arm in arms:
        pairs = [(loss, theirs[seed]) for seed, loss in arm.losses.items() if seed in theirs]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if arm.name != study.baseline and len(known) > 1 and all(abs(a - b) <= ALIKE * abs(b) for a, b in known):
            said.append(f"{arm.name} has {study.baseline}’s final loss at every seed: they may be one function")
    return tuple(said)
