"""Forests: the arms' differences from the baseline, and the contrasts and secondary endpoints beside them."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_jax.ablation.findings import ArmResults, StudyResults, Versus
from gpt_jax.ablation.picture import Picture, coloured, endpoint_title
from gpt_jax.ablation.secondary import NOT_COMPARED, SHARES
from gpt_jax.ablation.verdict import is_of_failures
from gpt_jax.pages.forest import ForestRow, Pair, draw_forest
from gpt_jax.pages.numbers import Number, Writer, p_value, writer

BARS = (
    " Thick: the interval that decides, 95% for {all} and all looks at once; thin, above: 95% for this difference "
    "alone{dots}."
)
DOTS = "; dots, below: the seeds, outliers ringed"
BEYOND = " An arrow at the edge names what lies beyond the axis."


def arms_forest(results: StudyResults) -> Picture | str | None:
    """The paired differences from the baseline."""
    base = next((arm for arm in results.arms if arm.name == results.baseline), None)
    write = writer(results.smallest_difference)
    rows = []
    for i, arm, index in coloured(results):
        versus = arm.versus_baseline
        if versus is None or versus.mean is None:
            continue
        pairs = [] if base is None or is_of_failures(results) else _pairs(arm, base, versus, write)
        rows.append(_row(arm.name, index, i, versus, pairs, write))
    if not rows:
        compared = [arm for arm in results.arms if arm.versus_baseline is not None]
        if compared:
            return "where seeds failed there is no difference of means"
        return "there is nothing to compare" if len(results.arms) == 1 else None
    left_out = [a.name for a in results.arms if a.versus_baseline is not None and a.versus_baseline.mean is None]
    note = f"Paired difference from {results.baseline}, mean over seeds."
    note += _how_to_read(results.smallest_difference, rows, "all arms")
    note += f" Without a difference, because seeds failed: {', '.join(left_out)}." if left_out else ""
    return _forest("forest", "Differences from the baseline", note, rows, results)


def contrasts_forest(results: StudyResults) -> Picture | str | None:
    """The contrasts: differences of two other arms, and interactions."""
    write = writer(results.smallest_difference)
    known = [(i, contrast) for i, contrast in enumerate(results.contrasts) if contrast.versus.mean is not None]
    rows = [_row(contrast.name, i, 100 + i, contrast.versus, [], write) for i, contrast in known]
    if not rows:
        return "no two other arms" if not results.contrasts else "where seeds failed there is no difference of means"
    note = "Secondary: pairs of other arms, and what two changes do together beyond what each does alone."
    note += _how_to_read(results.smallest_difference, rows, "all contrasts of a kind")
    return _forest("contrasts", "Arms against each other, and interactions", note, rows, results)


def secondary_forest(results: StudyResults) -> Picture | str:
    """The differences of accuracies on the secondary endpoints that can be compared, endpoint by endpoint."""
    colours = {arm.name: (index, i) for i, arm, index in coloured(results)}
    compared = [
        found
        for found in results.secondary
        if found.arm in colours and found.versus.mean is not None and found.versus.verdict != NOT_COMPARED
    ]
    short = {found.endpoint: found.endpoint.removeprefix(f"{found.suite}, ") for found in compared}
    short = short if len(set(short.values())) == len(short) else {name: name for name in short}
    rows = [
        _row(f"{found.arm}: {short[found.endpoint]}", *colours[found.arm], found.versus, [], SHARES)
        for found in compared
    ]
    if not rows:
        return "the accuracies can’t be compared"
    margins = {found.smallest_difference for found in compared}
    smallest = margins.pop() if len(margins) == 1 else None
    note = f"Secondary: accuracy on questions with known answers, paired difference from {results.baseline}."
    note += _how_to_read(smallest, rows, "all secondary comparisons")
    left_out = len(results.secondary) - len(rows)
    note += f" Not drawn: {left_out} that can’t be compared; the table says why." if left_out else ""

    def draw(width: int, kind: str, about: str) -> str:
        return draw_forest(rows, smallest, "Δ accuracy (share of the answers)", ("worse", "better"), width, kind, about)

    return Picture("secondary", "Secondary endpoints", note, draw)


def _how_to_read(smallest: Number | None, rows: Sequence[ForestRow], together: str) -> str:
    if all(row.interval is None for row in rows):
        bars = " One seed: no intervals."
    else:
        pairs = [pair for row in rows for pair in row.pairs]
        bars = BARS.format(all=together, dots=DOTS if pairs else "")
        bars += BEYOND if any(pair.is_outlier for pair in pairs) else ""
    return bars + ("" if smallest is None else f" Shaded: differences too small to matter (± {smallest:g}).")


def _forest(key: str, title: str, note: str, rows: Sequence[ForestRow], results: StudyResults) -> Picture:
    axis = "Δ " + endpoint_title(results)
    sides = ("better", "worse") if results.lower_is_better else ("worse", "better")

    def draw(width: int, kind: str, about: str) -> str:
        return draw_forest(rows, results.smallest_difference, axis, sides, width, kind, about)

    return Picture(key, title, note, draw)


def _row(name: str, index: int | None, series: int, versus: Versus, pairs: Sequence[Pair], write: Writer) -> ForestRow:
    assert versus.mean is not None
    figures = write.signed(versus.mean)
    if versus.interval is not None:
        half = (versus.interval[1] - versus.interval[0]) / 2
        figures = f"{figures} ± {write.plain(half)}"
    p = "" if versus.p is None else f", p {p_value(versus.p)}"
    alone = versus.t_interval
    shown: list[Number] = [versus.mean, *(versus.interval or ()), *(alone or ())]
    if versus.outliers and versus.robust is not None:  # they moved the mean and its intervals too
        shown = [versus.robust, *(pair.value for pair in pairs if not pair.is_outlier)]
    return ForestRow(
        name, index, series, versus.mean, versus.interval, alone, pairs, figures, p, versus.verdict or "", shown
    )


def _pairs(arm: ArmResults, base: ArmResults, versus: Versus, write: Writer) -> list[Pair]:
    """The pairs of an arm and the baseline, by seed."""
    found = []
    for seed, theirs in base.values.items():
        ours = arm.values[seed] if seed in arm.values else None
        if ours is not None and theirs is not None:
            value, is_outlier = ours - theirs, seed in versus.outliers
            tip = f"seed {seed}: {write.signed(value)}{' (outlier)' if is_outlier else ''}"
            found.append(Pair(value, f"seed {seed}", tip, is_outlier))
    return found
