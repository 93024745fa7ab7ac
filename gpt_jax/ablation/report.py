"""A study's report: a page that opens from disk, Markdown, and CSV, all from `results.json` alone, so that it can be
written half-way through a study or years after it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape

from gpt_jax.ablation import records, sections, table
from gpt_jax.ablation.findings import StudyResults
from gpt_jax.ablation.pictures import Picture, pictures
from gpt_jax.ablation.results import RESULTS
from gpt_jax.config.errors import MissingFile
from gpt_jax.pages.markdown import escape_markdown, pipe_table
from gpt_jax.pages.render import render
from gpt_jax.runs.folder import RunFolder

REPORT, MARKDOWN, CSV = "report.html", "report.md", "results.csv"


def write_report(folder: str | os.PathLike[str]) -> str:
    """Writes `report.html`, `report.md` and `results.csv` beside `results.json`, and returns the page's path.

    Raises:
      MissingFile: the folder has no `results.json`.
      ConfigError: that file does not hold the results of a study.
    """
    place = RunFolder(folder)
    if not place.exists(RESULTS):
        raise MissingFile(f"there is no {RESULTS} in {place}: give the folder of a study that has begun")
    results = records.read(StudyResults, place, RESULTS)
    place.write_text(CSV, table.to_csv(results))
    place.write_text(MARKDOWN, to_markdown(results))
    place.write_text(REPORT, to_html(results))
    return str(place.file(REPORT))


def to_html(results: StudyResults) -> str:
    """The page."""
    drawn, missing = pictures(results)
    question = results.question
    body = [
        f'<p class="eyebrow">Ablation study</p>\n<h1>{escape(question)}</h1>',
        f'<p class="verdict">{escape(results.verdict or "No verdict yet.")}</p>',
        *(f'<p class="warning">{escape(warning)}</p>' for warning in sections.warnings(results)),
        sections.facts_html(sections.facts(results)),
        "<h2>Arms</h2>",
        sections.arms_html(results),
        "<h2>Pictures</h2>",
        pictures_html(drawn, missing),
        "<h2>Diagnostics</h2>",
        sections.diagnostics_html(results),
        "<h2>How the numbers are made</h2>",
        *(f'<p class="note">{escape(paragraph)}</p>' for paragraph in sections.METHOD),
        "<h2>To repeat it</h2>",
        sections.repeat_html(results),
    ]
    return render(question, "\n".join(body))


def pictures_html(drawn: Sequence[Picture], missing: Sequence[str]) -> str:
    figures = "\n".join(picture.html() for picture in drawn)
    absent = f'<p class="missing">Not measured: {escape("; ".join(missing))}.</p>' if missing else ""
    return f'<div class="pictures">\n{figures}\n</div>\n{absent}'


def to_markdown(results: StudyResults) -> str:
    """The report without pictures, for a pull request or a notebook."""
    columns, absent = table.columns(results)
    heads, right = [column.head for column in columns], [not column.is_text for column in columns]
    rows = [[column.text(arm) for column in columns] for arm in results.arms]
    say = escape_markdown
    parts = [f"# {say(results.question)}", say(results.verdict or "No verdict yet.")]
    parts += [f"> {say(warning)}" for warning in sections.warnings(results)]
    parts.append("".join(f"- {say(name)}: {say(value)}\n" for name, value in sections.facts(results)))
    parts.append(pipe_table(heads, rows, right))
    unmeasured = [*absent, *pictures(results)[1], *sections.absent_diagnostics(results)]
    if unmeasured:
        parts.append(f"Not measured: {say('; '.join(unmeasured))}.")
    heads, rows = sections.diagnostics(results)
    if len(heads) > 1:
        parts += ["## Diagnostics", pipe_table(heads, rows, [False] + [True] * (len(heads) - 1))]
    heads, rows = sections.settings(results)
    if rows:
        parts += ["## What the arms change", pipe_table(heads, rows, [False] * len(heads))]
    parts.append("## To repeat it")
    lines = sections.provenance(results)
    parts += [f"    {' '.join(value.split())}" for name, value in lines if name == "command"]
    parts.append("".join(f"- {say(name)}: {say(value)}\n" for name, value in lines if name != "command"))
    failures = results.repeat.failures
    if failures:
        parts += ["Failures:", "".join(f"- {say(failure)}\n" for failure in failures)]
    if results.repeat.configs:
        parts.append(f"Resolved configurations and every run are in `{RESULTS}` and `{REPORT}`.")
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"
