"""Results of any codebase: a table of arm, seed and loss becomes the results of a study."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt_jax.ablation import statistics as st
from gpt_jax.ablation.contrasts import contrasts
from gpt_jax.ablation.findings import ArmResults, StudyResults
from gpt_jax.ablation.schema import StudyRecord, Trial, Tuned
from gpt_jax.ablation.sentence import verdict_sentence
from gpt_jax.ablation.verdict import compare_arms
from gpt_jax.config.errors import MissingFile, UserError, nearest
from gpt_jax.config.foreign import read_text

NEEDED, OPTIONAL = ("arm", "seed", "loss"), ("rate", "look")
FAILED = ("", "nan", "inf", "-inf", "none", "diverged", "failed")


@dataclass(frozen=True)
class Row:
    """A run: its loss is None if it failed; `look` counts from 1."""

    arm: str
    seed: str
    loss: float | None
    rate: float | None = None
    look: int = 1


def read_table(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a CSV file with the columns arm, seed and loss, and perhaps rate and look. An empty loss, "nan" or
    "diverged" is a failed run.

    Raises:
      MissingFile: there is no such file.
      UserError: a column is missing or unknown, or a cell is no number.
    """
    file = Path(path)
    if not file.exists():
        raise MissingFile(f"there is no file {file}: give a CSV file with the columns {', '.join(NEEDED)}")
    lines = io.StringIO(read_text(file).removeprefix("\ufeff"), newline="")
    try:
        reader = csv.DictReader(lines)
        names = list(reader.fieldnames or ())
        for name in NEEDED:
            if name not in names:
                raise UserError(f'{file} has no column "{name}": its first line must name {", ".join(NEEDED)}')
        for name in names:
            if name not in (*NEEDED, *OPTIONAL):
                known = (*NEEDED, *OPTIONAL)
                raise UserError(f'{file} has an unknown column "{name}"{nearest(name, known)}: leave it out')
        return [_row(cells, f"{file}, line {number}") for number, cells in enumerate(reader, 2)]
    except csv.Error as error:
        raise UserError(f"{file} is not a CSV file ({error}): give one") from None


def _row(cells: Mapping[str, str | None], where: str) -> Row:
    if None in cells:
        raise UserError(f"{where}: it has more cells than the first line names")
    texts = {name: (cells[name] or "").strip() for name in cells}
    if not texts["arm"] or not texts["seed"]:
        raise UserError(f"{where}: the arm or the seed is empty")
    loss = None if texts["loss"].lower() in FAILED else _number(texts["loss"], where)
    rate = _number(texts["rate"], where) if texts.get("rate") else None
    look = _number(texts["look"], where) if texts.get("look") else 1.0
    if look < 1 or look != int(look):
        raise UserError(f"{where}: a look is a whole number from 1, not {texts['look']}")
    return Row(texts["arm"], texts["seed"], loss, rate, int(look))


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f'{where}: "{text}" is no number') from None
    if not math.isfinite(value):
        raise UserError(f'{where}: "{text}" is not finite')
    return value


def judge_table(
    rows: Iterable[Row],
    *,
    baseline: str,
    smallest_difference: float,
    question: str | None = None,
    most: int = st.MOST_SEEDS,
    unit: str = "nats per token",
    lower_is_better: bool = True,
) -> StudyResults:
    """The results of a study from its table.

    A seed at which some arm has several rates is a tuning seed: it shows each arm's best rate and decides nothing. The
    seeds of look 1 are the planned ones.

    Raises:
      UserError: the baseline is missing, or a run stands twice; or an arm's deciding seeds have several rates.
    """
    rows = list(rows)
    names = list(dict.fromkeys(row.arm for row in rows))
    if baseline not in names:
        raise UserError(f'the baseline "{baseline}" is not among the arms{nearest(baseline, names)}')
    if not (smallest_difference > 0 and math.isfinite(smallest_difference)):
        raise UserError(
            f"the smallest difference that matters must be positive and finite, not {smallest_difference:g}"
        )
    tuning = _tuning_seeds(rows)
    deciding = [row for row in rows if row.seed not in tuning]
    values = {name: {row.seed: row.loss for row in deciding if row.arm == name} for name in names}
    seeds = list(values[baseline])
    if not seeds:
        raise UserError(f'no seed of "{baseline}" decides: add seeds that have one rate, each arm’s best')
    planned = len({row.seed for row in deciding if row.arm == baseline and row.look == min(r.look for r in deciding)})
    if len(seeds) > max(most, planned):
        raise UserError(
            f'"{baseline}" has {len(seeds)} seeds, and the claim allows {most}: plan more of them beforehand'
        )
    study = StudyRecord(
        question=question or f"Which arm differs from {baseline}?",
        baseline=baseline,
        smallest_difference=smallest_difference,
        metric="final loss",
        unit=unit,
        lower_is_better=lower_is_better,
        planned_seeds=planned,
        most_seeds=max(most, planned),
        rules_out_failures=st.FAILURES_RULED_OUT,
        seeds=tuple(range(len(seeds))),
        arms=(),
        runs=(),
    )
    order = sorted(names, key=lambda name: name != baseline)
    arms = compare_arms([_arm(name, values[name], rows, tuning) for name in order], study)
    marks = [*map(_off_best, arms), *(_unpaired(arm, arms[0]) for arm in arms[1:]), _tuned_unequally(arms)]
    return StudyResults(
        question=study.question,
        baseline=baseline,
        smallest_difference=smallest_difference,
        metric=study.metric,
        unit=unit,
        lower_is_better=lower_is_better,
        planned_seeds=planned,
        most_seeds=study.most_seeds,
        rules_out_failures=study.rules_out_failures,
        seeds=study.seeds,
        verdict=verdict_sentence(arms, study, 1, 1),
        marks=tuple(mark for mark in marks if mark),
        arms=arms,
        contrasts=contrasts(arms, study),
    )


def _tuning_seeds(rows: list[Row]) -> set[str]:
    rates: dict[tuple[str, str], list[float | None]] = {}
    for row in rows:
        known = rates.setdefault((row.arm, row.seed), [])
        if row.rate in known:
            at = "" if row.rate is None else f" at rate {row.rate:g}"
            raise UserError(f'the arm "{row.arm}" has seed {row.seed}{at} twice: keep one')
        known.append(row.rate)
    return {seed for (_, seed), known in rates.items() if len(known) > 1}


def _arm(name: str, values: Mapping[str, float | None], rows: list[Row], tuning: set[str]) -> ArmResults:
    rates = {row.rate for row in rows if row.arm == name and row.seed not in tuning}
    if len(rates) > 1:
        raise UserError(f'the arm "{name}" has several rates at seeds that decide: each arm decides at its best rate')
    known = [value for value in values.values() if value is not None]
    summary = st.summarize(known if len(known) == len(values) else [])
    return ArmResults(
        name=name,
        learning_rate=next(iter(rates), None),
        tuned=_tuned([row for row in rows if row.arm == name and row.seed in tuning]),
        mean=summary.mean,
        std=summary.std,
        n=len(known),
        interval=summary.interval,
        values=dict(values),
        losses=dict(values),
    )


def _tuned(rows: list[Row]) -> Tuned | None:
    trials = []
    for rate in sorted({row.rate for row in rows if row.rate is not None}):
        losses = [row.loss for row in rows if row.rate == rate]
        known = [loss for loss in losses if loss is not None]
        mean = sum(known) / len(known) if len(known) == len(losses) else None
        trials.append(Trial(learning_rate=rate, loss=mean))
    finished = [trial for trial in trials if trial.loss is not None]
    if not finished:
        return None
    best = min(finished, key=lambda trial: trial.loss or math.inf)
    return Tuned(trials=tuple(trials), best=best, is_at_edge=len(trials) > 1 and best in (trials[0], trials[-1]))


def _off_best(arm: ArmResults) -> str | None:
    if arm.tuned is None or arm.tuned.best is None or arm.learning_rate in (None, arm.tuned.best.learning_rate):
        return None
    return f"{arm.name} decides at rate {arm.learning_rate:g}, though its best was {arm.tuned.best.learning_rate:g}"


def _unpaired(arm: ArmResults, baseline: ArmResults) -> str | None:
    """Whoever leaves out a seed chooses among seeds, so the page says which make no pair."""
    missing = [seed for seed in baseline.values if seed not in arm.values]
    extra = [seed for seed in arm.values if seed not in baseline.values]
    said = [
        f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)} of {name} only"
        for name, seeds in ((baseline.name, missing), (arm.name, extra))
        if seeds
    ]
    return f"without a pair, and so left out of {arm.name}’s difference: {' and '.join(said)}" if said else None


def _tuned_unequally(arms: Sequence[ArmResults]) -> str | None:
    """Whoever tries more rates has more chances."""
    tried = {arm.name: 0 if arm.tuned is None else len(arm.tuned.trials) for arm in arms}
    if len(set(tried.values())) < 2:
        return None
    return f"tuned unequally, by rates tried: {', '.join(f'{name} {count}' for name, count in tried.items())}"
