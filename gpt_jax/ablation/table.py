"""The table of a study: its columns, how their numbers are written, and the same as CSV.

A column's value is what it sorts by, its text what is read. CSV holds the values as they are, one row per arm; every
column that depends on the clock or the machine is named `measured_*` or `*_seconds`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from gpt_jax.ablation.findings import ArmResults, Diagnostics, StudyResults, Versus
from gpt_jax.ablation.schema import ArmPlan
from gpt_jax.ablation.statuses import diverged, is_lost, statuses
from gpt_jax.pages.numbers import Number, compact, count, decimals, loss, p_value, plus_minus, signed


@dataclass(frozen=True)
class Column:
    """A column of the table. `hint` explains the head, `tip` a cell; `value` is None where nothing was measured."""

    head: str
    hint: str
    value: Callable[[ArmResults], Number | str | None]
    text: Callable[[ArmResults], str]
    tip: Callable[[ArmResults], str] = lambda arm: ""
    is_text: bool = False
    always: bool = False


def runs_text(arm: ArmResults) -> str:
    """`8`, or `6 of 8 (1 diverged)`."""
    counts = statuses([arm])
    total, bad = sum(counts.values()), {k: n for k, n in counts.items() if n and k != "finished"}
    rest = ", ".join(f"{n} {status}" for status, n in bad.items())
    return f"{counts['finished']} of {total} ({rest})" if bad else str(total)


def mean_text(arm: ArmResults) -> str:
    """`1.4321 ± 0.0034`, or why there is no mean."""
    if arm.mean is not None:
        return plus_minus(arm.mean, arm.interval)
    counts = statuses([arm])
    return "diverged" if counts["diverged"] else "not run yet"


def verdict_text(arm: ArmResults) -> str:
    """The verdict, and where it is open the number of seeds that would decide."""
    versus = arm.versus_baseline
    if is_lost(arm):
        return diverged(arm) or ""
    if versus is None or versus.verdict is None:
        return "–"
    needed = seeds_needed(arm)
    return f"{versus.verdict}{f' (needs about {needed:,} seeds)' if needed else ''}"


def seeds_needed(arm: ArmResults) -> int | None:
    """The number of seeds that would decide on an undecided arm, if it has fewer."""
    versus = arm.versus_baseline
    if versus is None or versus.seeds_to_decide is None or "undecided" not in (versus.verdict or ""):
        return None
    return versus.seeds_to_decide if versus.seeds_to_decide > (arm.n or 0) else None


def changes_text(arm: ArmResults) -> str:
    """`kv_heads = 1, mlp.width = 80`: the arm's changes, with short names."""
    return ", ".join(f"{_last(key)} = {plain(value)}" for key, value in (arm.changes or {}).items())


def _last(key: str) -> str:
    *parents, name = key.split(".")
    return ".".join([*parents[-1:], name]) if name in ("type", "width", "path") else name


def plain(value: Any) -> str:
    """A setting as a person writes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


NOTHING = Versus()


def _versus(arm: ArmResults) -> Versus:
    """The comparison with the baseline; one of Nones where there is none."""
    return arm.versus_baseline or NOTHING


def _losses_tip(arm: ArmResults) -> str:
    losses = "; ".join(f"seed {seed}: {loss(value)}" for seed, value in arm.losses.items())
    spread = "" if arm.std is None else f"\nstandard deviation {loss(arm.std)}"
    return f"{losses}{spread}"


def _difference_tip(arm: ArmResults) -> str:
    if arm.versus_baseline is None:
        return ""
    versus = _versus(arm)
    interval = {"alone": versus.t_interval, "for text like this": versus.population_interval}
    lines = [f"95% {k}: {signed(v[0])} to {signed(v[1])}" for k, v in interval.items() if v is not None]
    return "\n".join(lines)


def _p_tip(arm: ArmResults) -> str:
    return f"paired t alone: {p_value(_versus(arm).t_p)}"


def columns(results: StudyResults) -> tuple[list[Column], list[str]]:
    """The columns in which some arm has a value, and the heads of the others."""
    metric = results.metric.replace("_", " ")
    counts = statuses(results.arms)
    uneven = len({arm.n for arm in results.arms}) > 1
    unclean = counts["finished"] < sum(counts.values())
    wanted = [
        Column("arm", "and what it changes", lambda a: a.name, lambda a: a.name, changes_text, True, True),
        Column(metric, "mean over seeds ± 95% interval, nats per token", lambda a: a.mean, mean_text, _losses_tip),
        Column(
            "Δ",
            "paired difference from the baseline ± 95% interval by t; below 0 is better",
            lambda a: _versus(a).mean,
            lambda a: plus_minus(_versus(a).mean, _versus(a).interval, signed),
            _difference_tip,
        ),
        Column("p", "paired t-test, corrected over arms and looks", lambda a: _versus(a).p, _p, _p_tip),
        Column("verdict", "", lambda a: _versus(a).verdict, verdict_text, is_text=True),
        Column("seeds", "runs in the mean", lambda a: a.n, lambda a: count(a.n)),
        Column("runs", "all that the arm has", lambda a: statuses([a])["finished"], runs_text),
        Column("LR", "learning rate", lambda a: a.learning_rate, _rate, _rate_tip),
        _cost("parameters", "trainable, all", lambda a: a.parameters),
        _cost("FLOPs/token", "of training, forward and backward, counted analytically", lambda a: a.flops_per_token),
        _cost("KV bytes/token", "of the cache, all layers", lambda a: a.kv_bytes_per_token, _bytes),
        _cost("decode tokens/s", "measured on this machine", lambda a: a.measured_decode_tokens_per_second),
        _cost("training tokens/s", "measured on this machine", lambda a: a.measured_training_tokens_per_second),
        _cost("peak memory", "measured", lambda a: a.measured_peak_bytes, _memory),
    ]  # fmt: skip
    wanted = [c for c in wanted if (c.head != "runs" or unclean) and (c.head != "seeds" or uneven)]
    kept = [c for c in wanted if c.always or any(c.value(arm) is not None for arm in results.arms)]
    return kept, [c.head for c in wanted if c not in kept]


def _cost(
    head: str,
    hint: str,
    value: Callable[[ArmResults], Number | None],
    write: Callable[[Number | None], str] = count,
) -> Column:
    """A column of numbers whose exact value is in the cell's tip."""
    return Column(head, hint, value, lambda a: write(value(a)), lambda a: _exact(value(a)))


def _p(arm: ArmResults) -> str:
    return p_value(_versus(arm).p)


def _rate(arm: ArmResults) -> str:
    rate = arm.learning_rate
    return "–" if rate is None else f"{rate:g}{' (edge of grid)' if _is_at_edge(arm) else ''}"


def _rate_tip(arm: ArmResults) -> str:
    return "the best lies on the edge of the grid: a better one may lie beyond" if _is_at_edge(arm) else ""


def _is_at_edge(arm: ArmResults) -> bool:
    return arm.tuned is not None and arm.tuned.is_at_edge


def _bytes(value: Number | None) -> str:
    return "–" if value is None else decimals(value, 0 if value == int(value) else 1)


def _memory(value: Number | None) -> str:
    return "–" if value is None else compact(value, 2) + "B"


def _exact(value: Number | None) -> str:
    return "" if value is None else f"{value:,.6g}" if isinstance(value, float) and value % 1 else f"{value:,.0f}"


def to_csv(results: StudyResults) -> str:
    """One row per arm, numbers as they are in `results.json`, an empty cell for what was not measured."""
    names: dict[str, None] = {}
    rows = [_csv_row(arm, results.baseline) for arm in results.arms]
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
    for name, value in asdict(_versus(arm)).items():
        if name.endswith("interval"):
            row |= _ends(f"difference_{name}", value)
        else:
            row["difference_mean" if name == "mean" else name] = value
    row |= asdict(arm.diagnostics or Diagnostics())
    row |= {f"runs_{status}": number for status, number in statuses([arm]).items()}
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


def _ends(name: str, interval: Sequence[Number] | None) -> dict[str, Number | None]:
    low, high = (None, None) if interval is None else interval
    return {f"{name}_low": low, f"{name}_high": high}
