"""The table of arms as HTML."""

from __future__ import annotations

import re
from html import escape

from gpt_jax.ablation import table
from gpt_jax.ablation.findings import ArmResults, StudyResults
from gpt_jax.ablation.picture import indices
from gpt_jax.pages.axes import style

DECIDED = ("better", "worse", "fails more often", "fails less often")
KINDS = {"Δ": "delta", "robust Δ": "delta", "p": "p", "verdict": "verdict-cell"}


def arms_html(results: StudyResults) -> str:
    """The sortable table of arms, and the columns that were not measured."""
    columns, absent = table.columns(results)
    head = "".join(
        f'<th scope="col"{_class(c)}{_title(c.hint)}><button type="button">{name}</button></th>'
        for c in columns
        for name in [escape(c.head).replace("/token", "/<wbr>token")]
    )
    rows = []
    for arm, colour in zip(results.arms, indices(results.arms, results.baseline), strict=True):
        is_baseline = arm.name == results.baseline
        cells = [_name_cell(arm, colour, is_baseline), *(_cell(column, arm) for column in columns[1:])]
        rows.append(f"<tr{' class=baseline' if is_baseline else ''}>{''.join(cells)}</tr>")
    notes = '<p class="note">Sort by any column; hover over a cell or a head, or tap it, for details.</p>'
    if timings := table.timings_note(results):
        notes += f'<p class="note timings">{escape(timings)}</p>'
    if absent:
        notes += f'<p class="missing">Not measured: {escape(", ".join(absent))}.</p>'
    return (
        f'<div class="scroll"><table class="sortable" id="arms"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{notes}"
    )


def _cell(column: table.Column, arm: ArmResults) -> str:
    value, small = column.value(arm), column.small(arm)
    sort = "" if value is None else escape(str(value))
    below = f"<small>{escape(small)}</small>" if small else ""
    decided = " decided" if column.is_text and value in DECIDED else ""
    text = escape(column.text(arm))
    return f'<td{_class(column, decided)} data-value="{sort}"{_title(column.tip(arm))}>{text}{below}</td>'


def _name_cell(arm: ArmResults, colour: int | None, is_baseline: bool) -> str:
    tag = ' <span class="tag">baseline</span>' if is_baseline else ""
    change = table.changes_text(arm)
    short = escape(change if len(change) <= 36 else change[:35] + "…")
    small = f"<small>{re.sub(r'[.](?=[a-z])', '.<wbr>', short)}</small>" if change else ""
    full = "\n".join(f"{key} = {table.plain(value)}" for key, value in (arm.changes or {}).items())
    name = escape(arm.name)
    key = f'<span class="key {style(colour)}"></span>'
    return f'<td class="text" data-value="{name}"{_title(full)}>{key}<b>{name}</b>{tag}{small}</td>'


def _class(column: table.Column, more: str = "") -> str:
    names = f"{'text ' if column.is_text else ''}{KINDS[column.head] if column.head in KINDS else ''}{more}".strip()
    return f' class="{names}"' if names else ""


def _title(text: str) -> str:
    return f' title="{escape(text)}"' if text else ""
