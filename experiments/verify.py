"""Checks run folders: `python -m experiments.verify --help`."""

from __future__ import annotations

import dataclasses
import json

import jax
from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import cli
from gpt_jax.runs.verify import Check, verify_run

PAGE = """
Check what in the folders of some runs can be trusted.

  python -m experiments.verify --workdir=DIR [DIR ...] [--json]

  --workdir=DIR ...      The folders of runs (required). A run may be running meanwhile.
  --json                 Print one JSON object, folder → checks, in place of the tables.
  --helpfull             List all flags, including those of the libraries.

It reads every checkpoint, compares its step, its record and the content of each array with what was saved,
and checks config.json, environment.json, metrics.jsonl (damaged lines, gaps, repeated steps), the tokenizer,
the evaluation, the data (a task, or text in this machine's cache), and the files that a model was imported
from, where they are still there. It locks nothing and changes nothing.

Exit codes: 0 all that can be checked is good, 1 something is not, 2 wrong command line.
"""

flags.DEFINE_multi_string("workdir", None, "The folders of runs.")
flags.DEFINE_bool("json", False, "Print JSON.")
FLAGS = flags.FLAGS
MARKS = {True: "yes", False: "NO", None: "?"}


def main() -> int:
    """Prints what was found, and returns 1 if something cannot be trusted."""
    jax.config.update("jax_platforms", "cpu")  # never the accelerator that a run is training on
    folders = cli.required("workdir", "the folder of a run")
    found = {folder: verify_run(folder) for folder in folders}
    if FLAGS.json:
        print(json.dumps({folder: [dataclasses.asdict(check) for check in checks] for folder, checks in found.items()}))
    else:
        for folder, checks in found.items():
            show(folder, checks)
    return 1 if any(check.trusted is False for checks in found.values() for check in checks) else 0


def show(folder: str, checks: list[Check]) -> None:
    """Prints a table of the checks of one run, and one line of advice for each thing that is wrong."""
    console = Console()
    console.print(folder, style="bold", highlight=False, markup=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("part", "trusted", "found"):
        table.add_column(title, overflow="fold")
    for check in checks:
        table.add_row(check.part, MARKS[check.trusted], Text(check.found))
    console.print(table)
    for check in checks:
        if check.advice is not None:
            console.print(f"{check.part}: {check.advice}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    cli.run(main, PAGE, several="workdir")
