"""The secondary endpoints in a report: a table of every arm on every endpoint, and the same as CSV."""

from __future__ import annotations

import csv
import io
from html import escape

from gpt_jax.ablation.findings import Secondary, StudyResults
from gpt_jax.ablation.secondary import NOT_COMPARED, SHARES, sentences
from gpt_jax.pages.numbers import p_value
from gpt_jax.pages.tables import plain_table

SECONDARY_CSV = "secondary.csv"
HEADS = ["endpoint", "arm", "verdict", "Δ", "95% interval", "p", "arm’s", "baseline", "chance", "seeds"]


def table(results: StudyResults) -> tuple[list[str], list[list[str]]]:
    """Heads and rows, endpoint by endpoint."""
    return HEADS, [_row(found) for found in results.secondary]


def _row(found: Secondary) -> list[str]:
    versus, write = found.versus, SHARES
    verdict = "; ".join(text for text in (versus.verdict, versus.reason) if text)
    shares = [write.plain(share) for share in (found.value, found.baseline, found.chance)]
    difference = [write.signed(versus.mean), write.interval(versus.interval), p_value(versus.p)]
    return [found.endpoint, found.arm, verdict or "–", *difference, *shares, str(versus.n)]


def note(results: StudyResults) -> str:
    """What is primary, what is secondary, and what the correction covers."""
    count = results.secondary_comparisons
    compared = "1 comparison" if count == 1 else f"all {count} comparisons"
    text = (
        f"Primary is the {results.metric.replace('_', ' ')}, which alone decides the study’s verdict. Secondary is the"
        " accuracy on questions with known answers, the same for every arm and seed; it changes nothing in the verdict."
        " Δ is the arm’s accuracy minus the baseline’s, the mean over seeds; intervals and p are Student’s, paired by"
        f" seed, and one correction of their own covers {compared} of ranked arms on secondary endpoints (Bonferroni)"
        " and looks. Chance is the accuracy that takes no more than the symbols of a row."
    )
    left_out = sum(found.versus.verdict == NOT_COMPARED for found in results.secondary)
    return text + (f" Not compared: {left_out}, which the correction counts all the same." if left_out else "")


def html(results: StudyResults) -> str:
    """The section; nothing where a study has no secondary endpoint."""
    heads, rows = table(results)
    if not rows:
        return ""
    return f'{plain_table(heads, rows, 3, "secondary-table")}<p class="note">{escape(note(results))}</p>'


def sentences_html(results: StudyResults) -> str:
    """What the secondary endpoints say beside the verdict, for the top of the page."""
    return "\n".join(f'<p class="beside">{escape(text)}</p>' for text in sentences(results))


def to_csv(results: StudyResults) -> str:
    """One row for each arm and endpoint, numbers as they are in `results.json`."""
    text = io.StringIO()
    names = ["endpoint", "suite", "arm", "chance", "baseline", "value", "smallest_difference"]
    own = ["mean", "std", "n", "t_p", "p", "verdict", "reason"]
    rows = []
    for found in results.secondary:
        low, high = found.versus.interval or (None, None)
        row = {name: getattr(found, name) for name in names} | {name: getattr(found.versus, name) for name in own}
        rows.append(row | {"interval_low": low, "interval_high": high, "comparisons": results.secondary_comparisons})
    writer = csv.DictWriter(text, [*names, *own, "interval_low", "interval_high", "comparisons"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
