"""How many of an arm's runs finished, and which of its seeds diverged."""

from __future__ import annotations

from collections.abc import Iterable

from gpt_jax.ablation.findings import ArmResults

STATUSES = ("finished", "diverged", "interrupted", "missing")


def statuses(arms: Iterable[ArmResults]) -> dict[str, int]:
    """The number of runs of each status."""
    found = [run.status or "missing" for arm in arms for run in arm.runs]
    return {status: found.count(status) for status in (*STATUSES, *sorted({*found} - {*STATUSES}))}


def diverged(arm: ArmResults) -> str | None:
    """In how many seeds the arm diverged, in words; None where in none."""
    lost = sum(loss is None for loss in arm.losses.values())
    return f"diverged in {lost} of {len(arm.losses)} seeds" if lost else None


def is_lost(arm: ArmResults) -> bool:
    """Whether all of the arm's runs that ended diverged."""
    return bool(arm.losses) and all(loss is None for loss in arm.losses.values())
