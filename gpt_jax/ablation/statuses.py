"""What an arm's runs are: how many finished or failed, and at which learning rates."""

from __future__ import annotations

from collections.abc import Iterable

from gpt_jax.ablation.findings import ArmResults

STATUSES = ("finished", "diverged", "interrupted", "missing")


def statuses(arms: Iterable[ArmResults]) -> dict[str, int]:
    """The number of runs of each status."""
    found = [run.status or "missing" for arm in arms for run in arm.runs]
    return {status: found.count(status) for status in (*STATUSES, *sorted({*found} - {*STATUSES}))}


def failed(arm: ArmResults) -> int:
    """How many of the arm's seeds failed, on the endpoint."""
    if arm.failures is not None:
        return arm.failures.failed
    return sum(value is None for value in _values(arm).values())


def ended(arm: ArmResults) -> int:
    """How many of the arm's seeds ended, well or not."""
    return arm.failures.n if arm.failures is not None else len(_values(arm))


def swept(arms: Iterable[ArmResults]) -> list[float]:
    """The learning rates at which every arm was trained, from low to high; none where no arm had several."""
    rates = [[float(rate) for rate in arm.by_learning_rate or {}] for arm in arms]
    return sorted({rate for known in rates for rate in known}) if any(len(known) > 1 for known in rates) else []


def failures_text(arm: ArmResults) -> str | None:
    """`1 of 8 seeds failed`; None where none did."""
    return f"{failed(arm)} of {ended(arm)} seeds failed" if failed(arm) else None


def _values(arm: ArmResults) -> dict[str, float | None]:
    return {**arm.losses, **arm.values}
