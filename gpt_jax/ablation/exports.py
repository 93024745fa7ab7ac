"""A report's parts as files for a paper: every picture, the table, and the method in words."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_jax.ablation import secondary_table
from gpt_jax.ablation.findings import StudyResults
from gpt_jax.ablation.latex import to_latex
from gpt_jax.ablation.method import paragraph
from gpt_jax.ablation.picture import EXPORT, Picture
from gpt_jax.ablation.table_csv import to_csv
from gpt_jax.pages.markdown import escape_markdown
from gpt_jax.pages.standalone import png
from gpt_jax.runs.folder import RunFolder

TABLE_TEX, TABLE_CSV, METHODS_MD, METHODS_TXT = "table.tex", "table.csv", "methods.md", "methods.txt"
TEXTS = {
    TABLE_TEX: "table in LaTeX",
    TABLE_CSV: "table as CSV",
    METHODS_MD: "methods in Markdown",
    METHODS_TXT: "as text",
}


def write_exports(results: StudyResults, pictures: Sequence[Picture], folder: RunFolder) -> None:
    """Writes the pictures as SVG and PNG, the table as LaTeX and CSV, and the methods paragraph, into `export/`."""
    words = paragraph(results)
    folder.make(EXPORT)
    folder.write_text(f"{EXPORT}/{TABLE_TEX}", to_latex(results))
    folder.write_text(f"{EXPORT}/{TABLE_CSV}", to_csv(results))
    if results.secondary:
        folder.write_text(f"{EXPORT}/{secondary_table.SECONDARY_CSV}", secondary_table.to_csv(results))
    folder.write_text(f"{EXPORT}/{METHODS_MD}", f"{escape_markdown(words)}\n")
    folder.write_text(f"{EXPORT}/{METHODS_TXT}", f"{words}\n")
    for picture in pictures:
        svg = picture.svg()
        folder.write_text(f"{EXPORT}/{picture.key}.svg", svg)
        folder.write_bytes(f"{EXPORT}/{picture.key}.png", png(svg))


def links_html(results: StudyResults) -> str:
    """Links to the files that are not pictures, relative to the page."""
    more = {secondary_table.SECONDARY_CSV: "secondary endpoints as CSV"} if results.secondary else {}
    links = " · ".join(f'<a href="{EXPORT}/{name}">{words}</a>' for name, words in (TEXTS | more).items())
    return f'<p class="files">For a paper: {links}. Each picture links to its files.</p>'
