"""The table of a study: what its columns are, how their numbers are written, and the same as Markdown and as CSV.

A column's value is what it sorts by, its text what is read. CSV holds the values as they are, one row per arm; every
column that depends on the clock or the machine is named `measured_*` or `*_seconds`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_jax.pages.axes import Number, compact, decimals

Arm = Mapping[str, Any]
STATUSES = ("finished", "diverged", "interrupted", "missing")
DIAGNOSTICS = {
    "attention_entropy": ("attention entropy", "nats, mean over heads and positions"),
    "sink_mass": ("sink mass", "share of attention on the first position"),
    "largest_logit": ("largest logit", "largest absolute attention score before the softmax"),
    "gradient_norm": ("gradient norm", "global norm before clipping"),
    "skipped_steps": ("skipped steps", "updates that were not finite and were left out"),
}


@dataclass(frozen=True)
class Column:
    """A column of the table. `hint` explains the head, `tip` a cell; `value` is None where nothing was measured."""

    head: str
    hint: str
    value: Callable[[Arm], Number | str | None]
    text: Callable[[Arm], str]
    tip: Callable[[Arm], str] = lambda arm: ""
    is_text: bool = False
    always: bool = False


def loss(value: Number | None) -> str:
    """Nats to four decimals."""
    return "–" if value is None else decimals(value, 4)


def signed(value: Number | None) -> str:
    """A difference, with its sign."""
    return "–" if value is None else f"{'+' if round(value, 4) > 0 else ''}{decimals(value, 4)}"


def p_value(p: Number | None) -> str:
    return "–" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def seconds(value: Number | None) -> str:
    """A time in the unit that a reader would choose."""
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def plus_minus(mean: Number | None, interval: Sequence[Number] | None, write: Callable[..., str] = loss) -> str:
    """`1.4321 ± 0.0034`: a mean and half of its (symmetric) interval."""
    if mean is None or interval is None:
        return write(mean)
    return f"{write(mean)} ± {loss((interval[1] - interval[0]) / 2)}"


def count(value: Number | None) -> str:
    return "–" if value is None else compact(value, padded=True)


def statuses(arms: Iterable[Arm]) -> dict[str, int]:
    """How many runs there are of each status."""
    found = [run["status"] for arm in arms for run in arm["runs"]]
    return {status: found.count(status) for status in (*STATUSES, *sorted({*found} - {*STATUSES}))}


def runs_text(arm: Arm) -> str:
    """`8`, or `6 of 8 (1 diverged)`."""
    counts = statuses([arm])
    total, bad = sum(counts.values()), {k: n for k, n in counts.items() if n and k != "finished"}
    rest = ", ".join(f"{n} {status}" for status, n in bad.items())
    return f"{counts['finished']} of {total} ({rest})" if bad else str(total)


def mean_text(arm: Arm) -> str:
    if arm["mean"] is not None:
        return plus_minus(arm["mean"], arm["interval"])
    counts = statuses([arm])
    return "diverged" if counts["diverged"] else "not run yet"


def diverged(arm: Arm) -> str | None:
    """In how many seeds the arm diverged; None where in none."""
    lost = sum(loss is None for loss in arm["losses"].values())
    return f"diverged in {lost} of {len(arm['losses'])} seeds" if lost else None


def is_lost(arm: Arm) -> bool:
    """Whether an arm has runs that ended, and none that finished."""
    return bool(arm["losses"]) and all(loss is None for loss in arm["losses"].values())


def verdict_text(arm: Arm) -> str:
    """The verdict, and where it is open the number of seeds that would decide."""
    versus = arm["versus_baseline"]
    if is_lost(arm):
        return diverged(arm) or ""
    if versus is None or versus["verdict"] is None:
        return "–"
    needed = seeds_needed(arm)
    return f"{versus['verdict']}{f' (needs about {needed:,} seeds)' if needed else ''}"


def seeds_needed(arm: Arm) -> int | None:
    """How many seeds an undecided arm needs, where it has fewer."""
    versus = arm["versus_baseline"]
    if versus is None or versus["seeds_to_decide"] is None or "undecided" not in (versus["verdict"] or ""):
        return None
    return versus["seeds_to_decide"] if versus["seeds_to_decide"] > (arm["n"] or 0) else None


def changes_text(arm: Arm) -> str:
    """`kv_heads = 1, mlp.width = 80`: what makes the arm, by as much of each name as tells what it is."""
    return ", ".join(f"{_last(key)} = {plain(value)}" for key, value in (arm["changes"] or {}).items())


def _last(key: str) -> str:
    *parents, name = key.split(".")
    return ".".join([*parents[-1:], name]) if name in ("type", "width", "path") else name


def plain(value: Any) -> str:
    """A setting as one writes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _versus(arm: Arm, key: str) -> Any:
    return None if arm["versus_baseline"] is None else arm["versus_baseline"][key]


def _losses_tip(arm: Arm) -> str:
    losses = "; ".join(f"seed {seed}: {loss(value)}" for seed, value in (arm["losses"] or {}).items())
    spread = "" if arm["std"] is None else f"\nstandard deviation {loss(arm['std'])}"
    return f"{losses}{spread}"


def _difference_tip(arm: Arm) -> str:
    if arm["versus_baseline"] is None:
        return ""
    interval = {name: _versus(arm, key) for name, key in (("t", "t_interval"), ("BCa bootstrap", "bca_interval"))}
    lines = [f"95% by {k}: {signed(v[0])} to {signed(v[1])}" for k, v in interval.items() if v is not None]
    return "\n".join(lines)


def _p_tip(arm: Arm) -> str:
    return f"paired t {p_value(_versus(arm, 't_p'))}; sign flips {p_value(_versus(arm, 'sign_flip_p'))}"


def columns(results: Mapping[str, Any]) -> tuple[list[Column], list[str]]:
    """The columns that some arm has a value for, and the heads of those that none has."""
    metric = results["metric"].replace("_", " ")
    counts = statuses(results["arms"])
    uneven = len({arm["n"] for arm in results["arms"]}) > 1
    unclean = counts["finished"] < sum(counts.values())
    costs = [
        ("parameters", "parameters", "trainable, all", count),
        ("FLOPs/token", "flops_per_token", "of training, forward and backward, counted analytically", count),
        ("KV bytes/token", "kv_bytes_per_token", "of the cache, all layers", _bytes),
        ("decode tokens/s", "measured_decode_tokens_per_second", "measured on this machine", count),
        ("training tokens/s", "measured_training_tokens_per_second", "measured on this machine", count),
        ("peak memory", "measured_peak_bytes", "measured", lambda v: "–" if v is None else compact(v, 2) + "B"),
    ]
    wanted = [
        Column("arm", "and what it changes", lambda a: a["name"], lambda a: a["name"], changes_text, True, True),
        Column(metric, "mean over seeds ± 95% interval, nats per token", lambda a: a["mean"], mean_text, _losses_tip),
        Column(
            "Δ",
            "paired difference from the baseline ± 95% interval by t; below 0 is better",
            lambda a: _versus(a, "mean"),
            lambda a: plus_minus(_versus(a, "mean"), _versus(a, "t_interval"), signed),
            _difference_tip,
        ),
        Column("p (Holm)", "paired t-test, corrected over arms", lambda a: _versus(a, "t_p_holm"), _holm, _p_tip),
        Column("verdict", "", lambda a: _versus(a, "verdict"), verdict_text, is_text=True),
        Column("seeds", "runs in the mean", lambda a: a["n"], lambda a: count(a["n"])),
        Column("runs", "all that the arm has", lambda a: statuses([a])["finished"], runs_text),
        Column("best LR", "of those swept", lambda a: a["best_learning_rate"], _rate, _rate_tip),
        *(
            Column(head, hint, lambda a, k=key: a[k], lambda a, k=key, w=write: w(a[k]), lambda a, k=key: _exact(a[k]))  # type: ignore[misc]
            for head, key, hint, write in costs
        ),
    ]  # fmt: skip
    wanted = [c for c in wanted if (c.head != "runs" or unclean) and (c.head != "seeds" or uneven)]
    kept = [c for c in wanted if c.always or any(c.value(arm) is not None for arm in results["arms"])]
    return kept, [c.head for c in wanted if c not in kept]


def _holm(arm: Arm) -> str:
    return p_value(_versus(arm, "t_p_holm"))


def _rate(arm: Arm) -> str:
    rate = arm["best_learning_rate"]
    return "–" if rate is None else f"{rate:g}{' (edge of grid)' if arm['learning_rate_at_edge'] else ''}"


def _rate_tip(arm: Arm) -> str:
    return "the best lies on the edge of the grid: a better one may lie beyond" if arm["learning_rate_at_edge"] else ""


def _bytes(value: Number | None) -> str:
    return "–" if value is None else decimals(value, 0 if value == int(value) else 1)


def _exact(value: Number | None) -> str:
    return "" if value is None else f"{value:,.6g}" if isinstance(value, float) and value % 1 else f"{value:,.0f}"


def to_markdown(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """A pipe table; whatever Markdown or HTML would read in a cell is escaped."""
    lines = [heads, ["--:" if r else "---" for r in right], *rows]
    body = [[cell if i == 1 else escape_markdown(cell) for cell in row] for i, row in enumerate(lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in body)


def escape_markdown(text: str) -> str:
    """A text that reads as it stands in Markdown."""
    escaped = "".join(f"\\{c}" if c in "\\`*_[]|#~" else c for c in " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_csv(results: Mapping[str, Any]) -> str:
    """One row per arm, numbers as they are in `results.json`, an empty cell for what was not measured."""
    names: dict[str, None] = {}
    rows = [_csv_row(arm, results["baseline"]) for arm in results["arms"]]
    for row in rows:
        names |= dict.fromkeys(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(arm: Arm, baseline: str) -> dict[str, Any]:
    scalars = (
        "parameters", "parameters_non_embedding", "flops_per_token", "kv_bytes_per_token",
        "measured_decode_tokens_per_second", "measured_training_tokens_per_second", "measured_peak_bytes",
        "best_learning_rate", "learning_rate_at_edge", "learning_rate_sensitivity", "mean", "std", "n",
    )  # fmt: skip
    row = {"arm": arm["name"], "is_baseline": arm["name"] == baseline, "changes": json.dumps(arm["changes"])}
    row |= {key: arm[key] for key in scalars} | _ends("interval", arm["interval"])
    row["difference_mean"] = _versus(arm, "mean")
    for key in ("t_interval", "bca_interval"):
        row |= _ends(f"difference_{key}", _versus(arm, key))
    for key in ("t_p", "t_p_holm", "sign_flip_p", "verdict", "seeds_to_decide"):
        row[key] = _versus(arm, key)
    row |= {key: _cell((arm["diagnostics"] or {}).get(key)) for key in DIAGNOSTICS}
    row |= {f"runs_{status}": number for status, number in statuses([arm]).items()}
    row |= {f"loss_seed_{seed}": value for seed, value in (arm["losses"] or {}).items()}
    times = [run["wall_seconds"] for run in arm["runs"] if run["wall_seconds"] is not None]
    row["wall_seconds"] = math.fsum(times) if times else None
    return row


def _ends(name: str, interval: Sequence[Number] | None) -> dict[str, Number | None]:
    low, high = (None, None) if interval is None else interval
    return {f"{name}_low": low, f"{name}_high": high}


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
