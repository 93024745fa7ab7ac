"""The table of a study for a paper, in LaTeX."""

from __future__ import annotations

from gpt_jax.ablation import headline, table
from gpt_jax.ablation.findings import ArmResults, StudyResults
from gpt_jax.ablation.picture import STAMP

HEAD = "% Needs the packages booktabs and graphicx."
SIGNS = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "Δ": r"$\Delta$",
    "→": r"$\rightarrow$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "’": "'",
    "“": "``",
    "”": "''",
}


def escaped(text: str) -> str:
    """`text` on one line, with everything escaped that LaTeX would interpret."""
    return "".join(SIGNS[c] if c in SIGNS else c for c in " ".join(text.split()))


def to_latex(results: StudyResults) -> str:
    """The table with booktabs' rules, as wide as the page; its caption has the study's marks too."""
    columns = [column for column in table.columns(results)[0] if column.on_paper]
    kinds = "".join("l" if column.is_text else "r" for column in columns)
    rows = [[_cell(column, arm) for column in columns] for arm in results.arms]
    heads = [escaped(column.head) for column in columns]
    lines = [f"    {' & '.join(row)} \\\\" for row in (heads, *rows)]
    stamp = f"{STAMP[:1].upper()}{STAMP[1:]}. " if results.is_smoke else ""
    caption = (
        f"{stamp}{results.question} Endpoint: {results.metric.replace('_', ' ')} ({results.unit}). Δ is the mean "
        f"paired difference from {results.baseline}, with the interval that holds for all arms and looks at once (95%)."
        f"{''.join(f' {mark}' for mark in headline.marks(results))}"
    )
    return "\n".join(
        [
            HEAD,
            r"\begin{table}",
            r"  \centering",
            f"  \\caption{{{escaped(caption)}}}",
            r"  \resizebox{\linewidth}{!}{%",
            f"  \\begin{{tabular}}{{{kinds}}}",
            r"    \toprule",
            lines[0],
            r"    \midrule",
            *lines[1:],
            r"    \bottomrule",
            r"  \end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _cell(column: table.Column, arm: ArmResults) -> str:
    """A verdict without its reason, which is too long for a paper's table; other cells with their small print."""
    return escaped(column.text(arm) if column.is_text else table.whole(column, arm))
