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

METHOD = (
    "Arms are paired: in one seed all have the same initial values for the parameters that they share, the same "
    "batches in the same order and the same validation tokens. Δ is the mean over seeds of (arm − baseline). ± is half "
    "of a 95% interval by Student’s t; the other interval is a bias-corrected and accelerated bootstrap (Efron 1987), "
    "which undercovers small samples (84% at 5 seeds, 89% at 8).",
    "p is that of the paired t-test, corrected over the arms (Holm 1979). Hovering shows p without correction, and "
    "that of flipping signs, which with n seeds can’t fall below 2/2ⁿ. The verdict is “no difference that matters” "
    "where the interval lies within the smallest difference that matters; else “better” or “worse” where p < 0.05; "
    "else “undecided”. The number of seeds that would decide is (1.96 + 0.84)² · σ² / Δ², with σ of the differences "
    "and Δ the smallest difference that matters.",
    "Runs that diverged are counted and listed, and are in no mean. Where several learning rates were tried, the "
    "figures of an arm are those of its best one.",
)


def warnings(results: StudyResults) -> list[str]:
    """What a reader must know before reading the figures."""
    counts = statuses(results.arms)
    total, left = sum(counts.values()), sum(n for s, n in counts.items() if s not in ("finished", "diverged"))
    said = []
    if left or not total:
        open_runs = ", ".join(f"{n} {s}" for s, n in counts.items() if n and s not in ("finished", "diverged"))
        done = f"{total - left} of {total} runs are done ({open_runs})" if total else "no run has begun"
        said.append(f"This study is not finished: {done}. The figures will change.")
    if counts["diverged"]:
        arms = [arm.name for arm in results.arms if statuses([arm])["diverged"]]
        said.append(f"{counts['diverged']} of {total} runs diverged ({', '.join(arms)}); they are in no mean.")
    if results.aa is not None and results.aa.equal is False:
        said.append(
            "The copy of the baseline (A/A) did not give the baseline’s losses bit for bit: trust no difference."
        )
    edge = [arm.name for arm in results.arms if arm.tuned is not None and arm.tuned.is_at_edge]
    if edge:
        said.append(f"The best learning rate lies on the edge of the grid for {', '.join(edge)}: widen the grid.")
    if max((arm.n or 0 for arm in results.arms), default=0) == 1:
        said.append("One seed: there are no intervals and no tests, and nothing is decided.")
    return said


def facts(results: StudyResults) -> list[tuple[str, str]]:
    """The study in a few figures, as pairs of a name and a text."""
    counts = statuses(results.arms)
    seeds = "–" if results.seeds is None else str(len(results.seeds))
    found = [("Baseline", str(results.baseline)), ("Arms", str(len(results.arms)))]
    found.append(("Seeds", seeds))
    found.append(("Runs", f"{counts['finished']} of {sum(counts.values())} finished"))
    budget = results.budget or Budget()
    field = f", by {budget.field}" if budget.field else ""
    found.append(("Matched on", f"{budget.match}{field}" if budget.match else "nothing"))
    if results.smallest_difference is not None:
        found.append(("Smallest difference that matters", f"{results.smallest_difference:g} nats per token"))
    noise = results.noise
    if noise is not None and noise.std is not None:
        found.append(("Noise of the baseline", f"standard deviation {loss(noise.std)}, {noise.n} fresh seeds"))
    copy = "not compared" if results.aa is None else "bit-equal" if results.aa.equal else "not equal"
    found.append(("A/A copy of the baseline", copy))
    if results.repeat.wall_seconds is not None:
        found.append(("Time of all runs", seconds(results.repeat.wall_seconds)))
    return found


def facts_html(pairs: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{items}</dl>'


def arms_html(results: StudyResults) -> str:
    """The sortable table of arms, and the columns that were not measured."""
    columns, absent = table.columns(results)
    head = "".join(
        f'<th scope="col"{_text_class(c)}{_title(c.hint)}><button type="button">{name}</button></th>'
        for c in columns
        for name in [escape(c.head).replace("/token", "/<wbr>token")]
    )
    rows = []
    colours = indices(results.arms, results.baseline)
    for arm, colour in zip(results.arms, colours, strict=True):
        is_baseline = arm.name == results.baseline
        cells = [_name_cell(arm, colour, is_baseline)]
        for column in columns[1:]:
            value = column.value(arm)
            sort = "" if value is None else escape(str(value))
            decided = " decided" if column.is_text and value in ("better", "worse") else ""
            kind = f' class="text verdict-cell{decided}"' if column.is_text else ""
            words, *more = column.text(arm).split(" (")
            small = f"<small>{escape(more[0].rstrip(')'))}</small>" if more else ""
            cells.append(f'<td{kind} data-value="{sort}"{_title(column.tip(arm))}>{escape(words)}{small}</td>')
        rows.append(f"<tr{' class=baseline' if is_baseline else ''}>{''.join(cells)}</tr>")
    notes = '<p class="note">Sort by any column; hover over a cell, or tap it, for details.</p>'
    if absent:
        notes += f'<p class="missing">Not measured: {escape(", ".join(absent))}.</p>'
    return (
        f'<div class="scroll"><table class="sortable" id="arms"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{notes}"
    )


def _name_cell(arm: ArmResults, colour: int | None, is_baseline: bool) -> str:
    tag = ' <span class="tag">baseline</span>' if is_baseline else ""
    change = table.changes_text(arm)
    small = f"<small>{escape(change if len(change) <= 36 else change[:35] + '…')}</small>" if change else ""
    full = "\n".join(f"{key} = {table.plain(value)}" for key, value in (arm.changes or {}).items())
    name = escape(arm.name)
    key = f'<span class="key {style(colour)}"></span>'
    return f'<td class="text" data-value="{name}"{_title(full)}>{key}<b>{name}</b>{tag}{small}</td>'


def _text_class(column: table.Column) -> str:
    return ' class="text"' if column.is_text else ""


def _title(text: str) -> str:
    return f' title="{escape(text)}"' if text else ""


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
