"""Evaluates a run on suites of questions with known answers, and writes a table, a CSV file and a picture."""

from __future__ import annotations

import csv
import dataclasses
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from gpt_jax.analysis.scoring import Scorer
from gpt_jax.analysis.suites import ANY_LENGTH, Result, measure_questions, measure_repeats, measure_task, measure_text
from gpt_jax.config import DataConfig, Text, TokenizerFile, check_length, learned_positions
from gpt_jax.config.errors import UserError
from gpt_jax.config.mesh import ALL_DATA
from gpt_jax.data import Data, open_data
from gpt_jax.data.prompts import KINDS, Haystack, NoQuestion
from gpt_jax.data.suites import REPEATING, SUITES, points
from gpt_jax.data.tasks import make_task
from gpt_jax.runs import consensus, record
from gpt_jax.runs.folder import TOKENIZER, RunFolder, Workdir
from gpt_jax.runs.load import OpenedRun, open_run
from gpt_jax.training.sharding import make_mesh

QUESTIONS = 200  # at each length
RESULTS, TABLE, PICTURE = "suites.json", "suites.csv", "suites.png"
TEXT_SUITES = (*KINDS, *REPEATING, "text")
NAMES = tuple(dict.fromkeys([*SUITES, *TEXT_SUITES]))
TEXT_FACTORS = (0.25, 0.5, 1, 2)  # of the training context


def evaluate_suites(
    workdir: Workdir,
    suites: Sequence[str],
    step: int | None = None,
    questions: int = QUESTIONS,
    lengths: Sequence[int] | None = None,
    axes: str = ALL_DATA,
) -> list[Result]:
    """Evaluates a checkpoint of a run on suites and writes `suites.json`, `suites.csv` and `suites.png` in its folder.

    A length at which a kind of question cannot be asked is left out, with a warning that says why.

    Args:
      suites: some of NAMES. A run that learned a task takes the suite of that task, one on text those of text.
      step: the checkpoint's step (None: the newest good one).
      questions: the number of rows or questions of each point.
      lengths: in tokens (None: fractions and multiples of the length that the run was trained on, as far as the model
        has positions).
      axes: the mesh over all devices, written as `Config.mesh`.

    Raises:
      ConfigError, MissingFile, UserError: as `load_run`; or a suite is unknown or does not fit the run, or the text is
        not the one that the run began with.
    """
    unknown = [name for name in suites if name not in NAMES]
    if unknown or not suites:
        raise UserError(f'there is no suite "{unknown[0] if unknown else ""}": choose among {", ".join(NAMES)}')
    mesh = make_mesh(axes=axes)
    opened = open_run(workdir, step, mesh)
    consensus.check_same(checkpoint=opened.fingerprint)
    for length in lengths or ():
        check_length(opened.config.model, length)
    longest = learned_positions(opened.config.model) or ANY_LENGTH
    score = Scorer(opened.model, opened.params, mesh, opened.config.evaluation.batch_size, longest)
    learned = opened.config.data
    if isinstance(learned, Text):
        results = list(_on_text(opened, learned, score, suites, questions, lengths))
    else:
        results = list(_on_task(opened, learned, score, suites, questions, lengths))
    if not results:
        raise UserError("no question can be asked, as the warnings say: choose other --lengths, or other suites")
    about = {"step": opened.step, "questions": questions}
    write(opened.folder, about, {opened.folder.path.name: results})
    return results


def _on_task(
    opened: OpenedRun,
    learned: DataConfig,
    score: Scorer,
    suites: Sequence[str],
    count: int,
    lengths: Sequence[int] | None,
) -> Iterator[Result]:
    trained, limit = make_task(learned).length, learned_positions(opened.config.model)
    for suite in suites:
        if suite not in SUITES:
            raise UserError(f"the suite {suite} is of text, and this run learned {type(learned).__name__}")
        for point in points(suite, learned, count, lengths):
            if limit is None or point.length <= limit:
                yield measure_task(score, point, trained)


def _on_text(
    opened: OpenedRun,
    learned: Text,
    score: Scorer,
    suites: Sequence[str],
    count: int,
    lengths: Sequence[int] | None,
) -> Iterator[Result]:
    data, trained = _held_out(opened, learned), opened.config.model.context_length
    limit = learned_positions(opened.config.model)
    wanted = [max(round(factor * trained), 2) for factor in TEXT_FACTORS] if lengths is None else lengths
    asked = sorted({length for length in wanted if limit is None or length <= limit})
    kept = words_alone(data, score.rows)
    if wrong := [suite for suite in suites if suite not in TEXT_SUITES]:
        raise UserError(
            f"the suite {wrong[0]} is of symbols, and this run learned text: choose {','.join(TEXT_SUITES)}"
        )
    if set(suites) & KINDS.keys():
        Haystack(kept, data.tokenizer)  # refuses a text of few words before anything is computed
    for suite in suites:
        if suite == "text":
            yield from measure_text(score, data)
        elif suite in KINDS:
            for kind in KINDS[suite]:
                ask = partial(measure_questions, score, Haystack(kept, data.tokenizer), suite, kind)
                yield from _each(f"{suite}, {kind}", ask, asked, count, trained)
        else:
            even = sorted({length // 2 * 2 for length in asked})  # two halves
            yield from _each(suite, partial(measure_repeats, score, kept, suite), even, count, trained)


def _each(
    name: str, ask: Callable[[int, int, int], Result], lengths: Sequence[int], count: int, trained: int
) -> Iterator[Result]:
    """The result at each length; a warning where the questions cannot be asked."""
    for length in lengths:
        try:
            yield ask(length, count, trained)
        except NoQuestion as reason:
            warnings.warn(f"{name}: nothing is asked at {length:,} tokens: {reason}", stacklevel=2)


def words_alone(data: Data, rows: int) -> np.ndarray:
    """The held-out text as ids, without special tokens such as the end of a document: training attends across none."""
    ids = np.concatenate([batch.targets[batch.weights > 0] for batch in data.validation(rows)])
    return ids[~np.isin(ids, list(data.tokenizer.special_tokens.values()))]


def _held_out(opened: OpenedRun, learned: Text) -> Data:
    """The run's data, with the run's own copy of a tokenizer file."""
    if isinstance(learned.tokenizer, TokenizerFile):
        learned = dataclasses.replace(learned, tokenizer=TokenizerFile(str(opened.folder.file(TOKENIZER))))
    data = open_data(learned, opened.config.model.context_length, opened.config.data_seed, progress=False)
    record.check_data(opened.folder, data)
    return data


# ── what is written and shown ────────────────────────────────────────────────────────────────────────────────────────


def write(folder: RunFolder, about: Mapping[str, Any], arms: Mapping[str, Sequence[Result]]) -> None:
    """Writes the results of some arms in the folder: JSON, CSV and a picture."""
    rows = [{"arm": arm} | dataclasses.asdict(result) for arm, results in arms.items() for result in results]
    folder.write_json(RESULTS, {**about, "results": rows})
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    folder.write_bytes(TABLE, text.getvalue().encode())
    if any(result.measure == "accuracy" for results in arms.values() for result in results):
        folder.write_bytes(PICTURE, picture(arms))
    else:  # an earlier picture would show other results
        folder.file(PICTURE).unlink(missing_ok=True)


def show(console: Console, arms: Mapping[str, Sequence[Result]]) -> None:
    """Prints a table; lengths beyond those of training have a +."""
    rows = [(arm, result) for arm, results in arms.items() for result in results]
    table, has_sizes = Table(box=None, padding=(0, 2, 0, 0), header_style="dim"), any(r.size for _, r in rows)
    for name in (*(["arm"] if len(arms) > 1 else []), "suite", "kind"):
        table.add_column(name)
    for name in ("length", *(["size"] if has_sizes else []), "value", "95% interval", "chance", "rows"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm, r in rows:
        length = f"{r.length:,}" if r.trained else f"+{r.length:,}"
        chance = "" if r.chance is None else f"{r.chance:.3f}"
        size = ["" if r.size is None else f"{r.size:,}"] if has_sizes else []
        first = [arm] if len(arms) > 1 else []
        value = f"{r.value:.3f}" if r.measure == "accuracy" else f"{r.value:.3f} nats"
        shown = f"{r.low:.3f}–{r.high:.3f}"
        table.add_row(*first, r.suite, r.kind, length, *size, value, shown, chance, f"{r.rows:,}")
    console.print(table)


def picture(arms: Mapping[str, Sequence[Result]]) -> bytes:
    """A PNG image with a panel for each kind of accuracy, and in it a curve over length for each arm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys((r.suite, r.kind) for rs in arms.values() for r in rs if r.measure == "accuracy"))
    columns = min(max(len(kinds), 1), 3)
    lines = -(-max(len(kinds), 1) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    for i, kind in enumerate(kinds):
        axes = figure.add_subplot(lines, columns, i + 1)
        for arm, results in arms.items():
            curve = sorted((r for r in results if (r.suite, r.kind) == kind), key=lambda r: r.length)
            if curve:
                _draw(axes, arm, curve)
        axes.set(title=": ".join(dict.fromkeys(kind)), xlabel="tokens", ylabel="accuracy", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
        if i == 0:
            axes.legend(fontsize=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    return drawn.getvalue()


def _draw(axes: Any, arm: str, curve: Sequence[Result]) -> None:
    """One curve with its intervals, the chance level, and a line at the end of the lengths of training."""
    x, y = [r.length for r in curve], np.array([r.value for r in curve])
    ends = [np.maximum(y - [r.low for r in curve], 0), np.maximum([r.high for r in curve] - y, 0)]
    axes.errorbar(x, y, yerr=ends, marker="o", markersize=4, capsize=2, label=arm)
    axes.set_xscale("log", base=2)
    axes.plot(x, [r.chance for r in curve], color="gray", linestyle=":", linewidth=1)
    if (within := [r.length for r in curve if r.trained]) and len(within) < len(curve):
        axes.axvline(max(within), color="gray", linewidth=0.8, alpha=0.6)
