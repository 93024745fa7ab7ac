"""A study's report: a page that opens from disk, Markdown, CSV and files for a paper, all from the study's results
alone, so that it can be written half-way through a study, years after it, or for the results of another codebase.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape

from gpt_jax.ablation import headline, inside, records, secondary_table, sections, table
from gpt_jax.ablation.arms_table import arms_html
from gpt_jax.ablation.claim import CLAIM
from gpt_jax.ablation.exports import links_html, write_exports
from gpt_jax.ablation.findings import StudyResults
from gpt_jax.ablation.method import method, paragraph
from gpt_jax.ablation.picture import STAMP, Picture
from gpt_jax.ablation.pictures import pictures
from gpt_jax.ablation.schema import RESULTS
from gpt_jax.ablation.secondary import sentences
from gpt_jax.ablation.table_csv import to_csv
from gpt_jax.config.errors import MissingFile
from gpt_jax.pages.markdown import escape_markdown, pipe_table
from gpt_jax.pages.render import render
from gpt_jax.pages.tables import plain_table
from gpt_jax.runs.folder import RunFolder

REPORT, MARKDOWN, CSV = "report.html", "report.md", "results.csv"
INSPECT = "inspect.html"  # two arms side by side, which `experiments.report --inspect` makes


INSPECT_LINK = (
    f'<a href="{INSPECT}">Look inside two arms</a>: models of the same seed read the same text, side by side, from'
    " tokens to the next token."
)


def write_report(folder: str | os.PathLike[str]) -> str:
    """Writes the pages of `write_pages` beside `results.json`, and returns the path of `report.html`.

    Raises:
      MissingFile: the folder has no `results.json`.
      ConfigError: that file does not hold the results of a study.
    """
    return write_pages(_read(RunFolder(folder)), folder)


def _read(place: RunFolder) -> StudyResults:
    if not place.exists(RESULTS):
        raise MissingFile(f"there is no {RESULTS} in {place}: give the folder of a study that has begun")
    return records.read(StudyResults, place, RESULTS)


def write_pages(results: StudyResults, folder: str | os.PathLike[str]) -> str:
    """Writes `report.html`, `report.md`, `results.csv` and, in `export/`, what a paper needs; returns the page's path.
    What the results lack is left out, or named as not measured.
    """
    place = RunFolder(folder)
    place.make()
    write_exports(results, pictures(results)[0], place)
    place.write_text(CSV, to_csv(results))
    place.write_text(MARKDOWN, to_markdown(results))
    place.write_text(REPORT, to_html(results, has_inspect=place.exists(INSPECT)))
    return str(place.file(REPORT))


def publish(folder: str | os.PathLike[str], to: str | os.PathLike[str]) -> str:
    """Writes what a study in `folder` says into the folder `to`, for a repository or a web page: `report.html` without
    links to `export/`, `report.md`, `results.csv` and the claim, if there is one. Returns the page's path.

    Raises:
      MissingFile, ConfigError: as `write_report`.
    """
    source, place = RunFolder(folder), RunFolder(to)
    results = _read(source)
    place.make()
    place.write_text(CSV, to_csv(results))
    place.write_text(MARKDOWN, to_markdown(results))
    place.write_text(REPORT, to_html(results, is_exported=False))
    if source.exists(CLAIM):
        place.write_text(CLAIM, source.read_text(CLAIM))
    return str(place.file(REPORT))


def to_html(results: StudyResults, is_exported: bool = True, has_inspect: bool = False) -> str:
    """The page, with links to the files in `export/` and to the page of two arms' insides if they are there."""
    drawn, missing = pictures(results)
    question = results.question
    body = [
        f'<p class="eyebrow">Ablation study</p>\n<h1>{escape(question)}</h1>',
        f'<p class="verdict">{escape(results.verdict or "No verdict yet.")}</p>',
        secondary_table.sentences_html(results),
        headline.marks_html(results),
        *(f'<p class="warning">{escape(warning)}</p>' for warning in headline.warnings(results)),
        headline.facts_html(headline.facts(results)),
        "<h2>Arms</h2>",
        arms_html(results),
        links_html(results) if is_exported else "",
        f'<p class="note">{INSPECT_LINK}</p>' if has_inspect else "",
        "<h2>Pictures</h2>",
        pictures_html(drawn, missing, is_exported),
        *_optional(results),
        "<h2>Diagnostics</h2>" if any(arm.diagnostics for arm in results.arms) else "",
        sections.diagnostics_html(results),
        "<h2>How the numbers are made</h2>",
        *(f'<p class="note">{escape(text)}</p>' for text in method(results)),
        "<h3>For a paper</h3>",
        f'<p class="note" id="methods">{escape(paragraph(results))}</p>',
    ]
    if repeated := sections.repeat_html(results):
        body += ["<h2>To repeat it</h2>", repeated]
    stamp = f'<div class="watermark" aria-hidden="true">{escape(STAMP)}</div>' if results.is_smoke else ""
    return render(question, "\n".join(part for part in [*body, stamp] if part))


def _optional(results: StudyResults) -> list[str]:
    """The sections that not every study has."""
    parts = []
    if found := secondary_table.html(results):
        parts += ["<h2>Secondary endpoints</h2>", found]
    if results.contrasts:
        parts += ["<h2>Arms against each other, and interactions</h2>", sections.contrasts_html(results)]
    heads, rows = sections.tuning(results)
    if rows:
        parts += ["<h2>Tuning</h2>", plain_table(heads, rows, 3, "tuning-table")]
    if found := inside.html(results):
        parts += ["<h2>Inside the heads</h2>", found]
    if results.log:
        parts += ["<h2>How this study was looked at</h2>", sections.log_html(results)]
    return parts


def pictures_html(drawn: Sequence[Picture], missing: Sequence[str], is_exported: bool = False) -> str:
    figures = "\n".join(picture.html(is_exported) for picture in drawn)
    absent = f'<p class="missing">Not measured: {escape("; ".join(missing))}.</p>' if missing else ""
    return f'<div class="pictures">\n{figures}\n</div>\n{absent}'


def to_markdown(results: StudyResults) -> str:
    """The report without pictures, for a pull request or a notebook."""
    columns, absent = table.columns(results)
    rows = [[table.whole(column, arm) for column in columns] for arm in results.arms]
    say = escape_markdown
    parts = [f"# {say(results.question)}"]
    parts += [f"**{STAMP[:1].upper()}{STAMP[1:]}.**"] if results.is_smoke else []
    parts += [say(results.verdict or "No verdict yet."), *(say(text) for text in sentences(results))]
    parts += [f"> **{say(mark)}**" for mark in headline.marks(results)]
    parts += [f"> {say(warning)}" for warning in headline.warnings(results)]
    parts.append("".join(f"- {say(name)}: {say(value)}\n" for name, value in headline.facts(results)))
    parts.append(pipe_table([c.head for c in columns], rows, [not column.is_text for column in columns]))
    parts.append(say(table.timings_note(results)))
    unmeasured = [*absent, *pictures(results)[1], *sections.absent_diagnostics(results)]
    if unmeasured:
        parts.append(f"Not measured: {say('; '.join(unmeasured))}.")
    titled = {
        f"Secondary endpoints ({results.secondary_comparisons} comparisons, corrected together)": secondary_table.table(
            results
        ),
        "Arms against each other, and interactions": sections.contrasts(results),
        "Tuning": sections.tuning(results),
        "How this study was looked at": sections.log(results),
        "Diagnostics": sections.diagnostics(results),
        "Inside the heads (secondary, corrected over all rows)": inside.table(results),
        "What the arms change": sections.settings(results),
    }
    for title, (heads, body) in titled.items():
        if body and len(heads) > 1:
            parts += [f"## {title}", pipe_table(heads, body, [False] * len(heads))]
    parts += ["## Methods", say(paragraph(results)), *_repeat_markdown(results)]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def _repeat_markdown(results: StudyResults) -> list[str]:
    lines, say = sections.provenance(results), escape_markdown
    parts = ["## To repeat it"] if lines else []
    parts += [f"    {' '.join(value.split())}" for name, value in lines if name == "command"]
    parts.append("".join(f"- {say(name)}: {say(value)}\n" for name, value in lines if name != "command"))
    failures = results.repeat.failures
    if failures:
        parts += ["Failures:", "".join(f"- {say(failure)}\n" for failure in failures)]
    if results.repeat.configs:
        parts.append(f"Resolved configurations and every run are in `{REPORT}`.")
    return parts
