"""The texts and tables of a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from gpt_jax.ablation import table
from gpt_jax.ablation.findings import ArmResults, Diagnostics, RunRecord, StudyResults
from gpt_jax.ablation.pictures import indices
from gpt_jax.ablation.schema import Budget
from gpt_jax.ablation.statuses import statuses
from gpt_jax.config.conversion import flatten
from gpt_jax.pages.axes import style
from gpt_jax.pages.numbers import Number, compact, loss, seconds

def plain_table(heads: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int, identifier: str = "") -> str:
    """A table of texts, the first `text_columns` columns flush left."""
    kinds = [' class="text wrap"' if i < text_columns else "" for i in range(len(heads))]
    head = "".join(f'<th scope="col"{kind}>{escape(text)}</th>' for kind, text in zip(kinds, heads, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    name = f' id="{identifier}"' if identifier else ""
    return f'<div class="scroll"><table{name}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


@dataclass(frozen=True)
class Reading:
    """A number about an arm's training or attention: its name, its unit, and where it is."""

    name: str
    unit: str
    value: Callable[[ArmResults], Number | None]


def _diagnostic(value: Callable[[Diagnostics], Number | None]) -> Callable[[ArmResults], Number | None]:
    return lambda arm: None if arm.diagnostics is None else value(arm.diagnostics)


READINGS = (
    Reading("attention entropy", "nats, mean over heads and positions", _diagnostic(lambda d: d.attention_entropy)),
    Reading("sink mass", "share of attention on the first position", _diagnostic(lambda d: d.sink_mass)),
    Reading(
        "largest logit", "largest absolute attention score before the softmax", _diagnostic(lambda d: d.largest_logit)
    ),
    Reading("gradient norm", "global norm before clipping", _diagnostic(lambda d: d.gradient_norm)),
    Reading("skipped steps", "updates that were not finite and were skipped", _diagnostic(lambda d: d.skipped_steps)),
    Reading(
        "LR sensitivity",
        "mean over the grid of min(loss, initial loss) − best loss, nats",
        lambda arm: arm.learning_rate_sensitivity,
    ),
)


def diagnostics(results: StudyResults) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the readings that some arm has."""
    known = [reading for reading in READINGS if any(reading.value(arm) is not None for arm in results.arms)]
    heads = ["arm", *(reading.name for reading in known)]
    return heads, [[arm.name, *(_written(reading.value(arm)) for reading in known)] for arm in results.arms]


def _written(value: Number | None) -> str:
    return "–" if value is None else compact(value)


def absent_diagnostics(results: StudyResults) -> list[str]:
    """The names of the readings that no arm has."""
    heads = diagnostics(results)[0]
    return [reading.name for reading in READINGS if reading.name not in heads]


def diagnostics_html(results: StudyResults) -> str:
    heads, rows = diagnostics(results)
    absent = absent_diagnostics(results)
    note = f'<p class="missing">Not measured: {escape(", ".join(absent))}.</p>' if absent else ""
    if len(heads) == 1:
        return note
    units = "; ".join(f"{reading.name}: {reading.unit}" for reading in READINGS if reading.name in heads)
    return f'{plain_table(heads, rows, 1, "diagnostics")}<p class="note">{escape(units)}.</p>{note}'


def settings(results: StudyResults) -> tuple[list[str], list[list[str]]]:
    """What each arm changes: one row per setting, its value in the baseline and in the arms."""
    configs = results.repeat.configs or {}
    base = flatten(configs[results.baseline]) if results.baseline in configs else {}
    rows = []
    for arm in results.arms:
        for key, value in (arm.changes or {}).items():
            before = table.plain(base[key]) if key in base else "–"
            rows.append([arm.name, key, before, table.plain(value)])
    return ["arm", "setting", "baseline", "arm’s"], rows


def provenance(results: StudyResults) -> list[tuple[str, str]]:
    """What one needs to make the study again, in lines of a name and a text."""
    repeat = results.repeat
    versions = ", ".join(f"{name} {version}" for name, version in (repeat.versions or {}).items())
    found = [
        ("command", repeat.command),
        ("git", repeat.git),
        ("data", repeat.data_hash),
        ("versions", versions),
        ("seeds", None if results.seeds is None else ", ".join(map(str, results.seeds))),
        ("training", None if repeat.together is None else repeat.together.reason),
        ("wall time", None if repeat.wall_seconds is None else seconds(repeat.wall_seconds)),
    ]
    return [(name, text) for name, text in found if text]


def repeat_html(results: StudyResults) -> str:
    """Command, versions, what the arms change, every run, resolved configurations."""
    parts = []
    for name, value in provenance(results):
        words = " ".join(f'<span class="word">{escape(word)}</span>' for word in value.split(" "))
        body = f"<pre>{words}</pre>" if name == "command" else f" {escape(value)}"
        parts.append(f'<div class="line"><b>{escape(name.capitalize())}</b>{body}</div>')
    items = "".join(f"<li>{escape(failure)}</li>" for failure in results.repeat.failures)
    parts.append(f"<p><b>Failures</b></p><ul>{items}</ul>" if items else "<p><b>Failures</b> none</p>")
    heads, rows = settings(results)
    if rows:
        parts.append(f"<h3>What the arms change</h3>{plain_table(heads, rows, 4, 'settings')}")
    runs = [[arm.name, *_run_cells(run)] for arm in results.arms for run in arm.runs]
    if runs:
        table_of_runs = plain_table(["arm", *RUN_HEADS], runs, 1, "runs")
        parts.append(f"<details><summary>All {len(runs)} runs</summary>{table_of_runs}</details>")
    for name, config in (results.repeat.configs or {}).items():
        listing = escape(json.dumps(config, indent=2, ensure_ascii=False))
        summary = f"<summary>Configuration of {escape(name)}, resolved</summary>"
        parts.append(f'<details class="long">{summary}<pre>{listing}</pre></details>')
    return "\n".join(parts)


RUN_HEADS = ("seed", "learning rate", "status", "time", "hash of the configuration", "folder")


def _run_cells(run: RunRecord) -> list[str]:
    rate = None if run.learning_rate is None else f"{run.learning_rate:g}"
    cells = [run.seed, rate, run.status, seconds(run.wall_seconds), run.config_hash, run.folder]
    return ["–" if cell is None else str(cell) for cell in cells]
