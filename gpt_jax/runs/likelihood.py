"""Evaluates a run on ready requests of likelihood suites, and writes what it answered."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from gpt_jax.analysis.likelihood import Answers, answer
from gpt_jax.analysis.scoring import Scorer
from gpt_jax.config.errors import UserError
from gpt_jax.config.mesh import ALL_DATA
from gpt_jax.data.requests import chosen_tasks, find_tasks, read_questions
from gpt_jax.runs import consensus
from gpt_jax.runs.folder import Workdir
from gpt_jax.runs.load import open_run, run_tokenizer
from gpt_jax.training.sharding import make_mesh

RESULTS = "likelihood.json"
BATCH_SIZE = 16


def evaluate_likelihood(
    workdir: Workdir,
    requests: str | os.PathLike[str],
    tasks: Sequence[str],
    step: int | None = None,
    questions: int | None = None,
    batch_size: int = BATCH_SIZE,
    axes: str = ALL_DATA,
) -> dict[str, Answers]:
    """Evaluates a checkpoint of a run on `tasks` and writes `likelihood.json` in its folder: measures, and the
    log-likelihoods of all choices by the question's number, but none of the texts.

    Args:
      requests: a wheel, a folder or a file, as `find_tasks`.
      step: the checkpoint's step (None: the newest good one).
      questions: how many of each task, drawn with a fixed seed (None: all).
      batch_size: about how many choices go at a time; it changes results by rounding alone.
      axes: the mesh over all devices, written as `Config.mesh`.

    Raises:
      ConfigError, MissingFile, UserError: as `load_run`, `find_tasks`, `read_questions` and `answer`.
    """
    found = chosen_tasks(find_tasks(requests), tasks)
    asked = {name: read_questions(source, questions) for name, source in found.items()}
    mesh = make_mesh(axes=axes)
    opened = open_run(workdir, step, mesh)
    consensus.check_same(checkpoint=opened.fingerprint, requests=repr(asked))
    tokenizer = run_tokenizer(opened.folder)
    score = Scorer(opened.model, opened.params, mesh, batch_size)
    results = {}
    for name, of_task in asked.items():
        try:
            results[name] = answer(score, tokenizer, of_task)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    opened.folder.write_json(RESULTS, {"step": opened.step, "tasks": {k: _record(v) for k, v in results.items()}})
    return results


def _record(answers: Answers) -> dict[str, object]:
    logs = {str(number): values for number, values in answers.loglikelihoods.items()}
    return {"measured": [dataclasses.asdict(one) for one in answers.measured], "loglikelihoods": logs}


def show(console: Console, results: Mapping[str, Answers]) -> None:
    """Prints a table."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("task")
    table.add_column("measure")
    for name in ("value", "95% interval", "chance", "questions"):
        table.add_column(name, justify="right", no_wrap=True)
    for task, answers in results.items():
        for m in answers.measured:
            chance = "" if m.chance is None else f"{m.chance:.3f}"
            table.add_row(task, m.name, f"{m.value:.3f}", f"{m.low:.3f}–{m.high:.3f}", chance, f"{m.questions:,}")
    console.print(table)
