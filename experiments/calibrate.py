"""Simulates studies to see whether the statistics keep their word: `python -m experiments.calibrate --help`."""

from __future__ import annotations

from pathlib import Path

import jax
from absl import flags
from rich.console import Console

from experiments import cli
from gpt_jax.ablation.calibration import Figure, calibrate, costs, wasted
from gpt_jax.config.foreign import read_text
from gpt_jax.pages.markdown import pipe_table

PAGE = """
Simulate studies whose truth is known, judge them by the functions that judge real ones, and print how often the
intervals hold and how often a verdict is false.

  python -m experiments.calibrate [--studies=2000] [--output=docs/statistics.md]

  --studies=N            Simulated studies for most figures (2000 take about 3 minutes).
  --output=FILE.md       Also writes the tables into the part of this file between the marks "figures" (see
                         docs/statistics.md).
  --helpfull             All flags, those of the libraries too.

Exit codes: 0 every figure holds, 1 one does not, 2 wrong command line.
"""

flags.DEFINE_integer("studies", 2000, "Simulated studies.", lower_bound=100)
flags.DEFINE_string("output", None, "A Markdown file to write into.")
FLAGS = flags.FLAGS
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def main() -> int:
    jax.config.update("jax_platforms", "cpu")
    file = None if FLAGS.output is None else Path(FLAGS.output)
    if file is not None and not all(mark in read_text(file) for mark in (BEGIN, END)):
        raise cli.UsageError(f"{file} has no part between {BEGIN} and {END}: name docs/statistics.md")
    console = Console(highlight=False)
    found = calibrate(FLAGS.studies, lambda figure: console.print(_line(figure), markup=False, soft_wrap=True))
    text = _tables(found)
    console.print(f"\n{text}", markup=False, soft_wrap=True)
    if file is not None:
        head, rest = read_text(file).split(BEGIN)
        file.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")
    return 0 if all(figure.holds for figure in found) else cli.FAILURE


def _line(figure: Figure) -> str:
    return f"{'ok ' if figure.holds else 'NOT'} {figure.seen:7.2%}  {figure.name}"


def _asked(figure: Figure) -> str:
    low, high = figure.asked
    return f"at most {high:.0%}" if low == 0 else f"at least {low:.0%}" if high == 1 else f"{low:.0%} to {high:.0%}"


def _tables(found: list[Figure]) -> str:
    rows = [
        [f.name, _asked(f), f"{f.seen:.1%}", "" if f.before is None else f"{f.before:.1%}", f"{f.studies:,}"]
        for f in found
    ]
    figures = pipe_table(["figure", "asked", "seen", "without", "studies"], rows, [False, True, True, True, True])
    heads = ["seeds", "one look, none added", "first look, more may follow", "a later look, the first was at 5"]
    power = pipe_table(heads, [[n, *text.split(" | ")] for n, text in costs()], [True] * 4)
    cost = (
        f"Where one look at 8 seeds finds a difference in 80% of studies, a first look at 8 finds it in {wasted():.0%}."
    )
    return f"{figures}\n\nThe difference found in 80% of studies, in standard deviations:\n\n{power}\n\n{cost}"


if __name__ == "__main__":
    cli.run(main, PAGE)
