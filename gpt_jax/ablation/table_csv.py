"""The table of a study as CSV, one row per arm, with the values as they are.

Every column that depends on the clock or the machine is named `measured_*` or `*_seconds`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import typing
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from gpt_jax.ablation.findings import ArmResults, Diagnostics, StudyResults, Versus
from gpt_jax.ablation.schema import ArmPlan
from gpt_jax.ablation.statuses import statuses
from gpt_jax.pages.numbers import Number


def to_csv(results: StudyResults) -> str:
    """One row per arm, numbers as they are in `results.json`, an empty cell for what was not measured. A smoke
    test has a column that says so.
    """
    names: dict[str, None] = {}
    rows = [_csv_row(arm, results.baseline) for arm in results.arms]
    rows = [{**row, "is_smoke": True} for row in rows] if results.is_smoke else rows
    for row in rows:
        names |= dict.fromkeys(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(arm: ArmResults, baseline: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm.name, "is_baseline": arm.name == baseline, "changes": json.dumps(arm.changes)}
    row |= {name: getattr(arm, name) for name in NUMBERS} | _ends("interval", arm.interval)
    row |= _failures(asdict(arm)["failures"])
    for name, value in asdict(arm.versus_baseline or Versus()).items():
        if name == "failures":
            row["difference_failures_p"] = None if value is None else value["p"]
        elif name.endswith("interval"):
            row |= _ends(f"difference_{name}", value)
        elif name == "outliers":
            row["difference_outliers"] = " ".join(value)
        else:
            row[name if name in ("p", "verdict", "reason", "seeds_to_decide") else f"difference_{name}"] = value
    row |= asdict(arm.diagnostics or Diagnostics())
    row |= {f"runs_{status}": number for status, number in statuses([arm]).items()}
    row |= {f"value_seed_{seed}": value for seed, value in arm.values.items()}
    row |= {f"loss_seed_{seed}": value for seed, value in arm.losses.items()}
    times = [run.wall_seconds for run in arm.runs if run.wall_seconds is not None]
    row["wall_seconds"] = math.fsum(times) if times else None
    return row


def _numbers() -> list[str]:
    """The fields of an arm that hold one number: those of its plan first."""
    hints = typing.get_type_hints(ArmResults)
    names = dict.fromkeys(field.name for kind in (ArmPlan, ArmResults) for field in fields(kind))
    return [name for name in names if {*typing.get_args(hints[name]), hints[name]} & {float, int, bool}]


NUMBERS = _numbers()


def _failures(found: dict[str, Any] | None) -> dict[str, Number | None]:
    known = found or {"failed": None, "n": None, "interval": None}
    return {"failed": known["failed"], **_ends("failed_interval", known["interval"])}


def _ends(name: str, interval: Sequence[Number] | None) -> dict[str, Number | None]:
    low, high = (None, None) if interval is None else interval
    return {f"{name}_low": low, f"{name}_high": high}
