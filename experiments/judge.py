"""Judges the results of any codebase: `python -m experiments.judge --help`."""

from __future__ import annotations

from pathlib import Path

import jax
from absl import flags

from experiments import cli
from gpt_jax.ablation import records
from gpt_jax.ablation import statistics as st
from gpt_jax.ablation.outside import judge_table, read_table
from gpt_jax.ablation.report import write_pages
from gpt_jax.ablation.schema import RESULTS
from gpt_jax.ablation.sentence import with_marks
from gpt_jax.runs.folder import RunFolder

PAGE = """
Judge a table of results, whichever code made them: the statistics, verdicts and page of a study.

  python -m experiments.judge FILE.csv --baseline=NAME --smallest_difference=0.01

  FILE.csv                   One line per run, with the columns arm, seed and loss: the same seed in two arms is a
                             pair. An empty loss or "diverged" is a run that failed. Optional columns: rate (seeds at
                             which an arm has several rates are tuning seeds, which decide nothing), and look (1 for
                             the seeds that were planned, 2, 3, … for those added after looking).
  --baseline=NAME            The arm that the others are compared with (required).
  --smallest_difference=X    The smallest difference that matters, in the unit of the losses (required).
  --question=TEXT            The title of the page.
  --unit=TEXT                What the numbers are (nats per token).
  --higher_is_better         For accuracies.
  --most_seeds=N             The largest number of seeds that you may still add (40). The number that you have, if you
                             will add none: intervals are then a little narrower.
  --workdir=DIR              Where report.html, report.md and results.csv go (the folder FILE beside FILE.csv).
  --helpfull                 All flags, those of the libraries too.

Exit codes: 0 done, 1 failed, 2 wrong command line or table.
"""

flags.DEFINE_string("table", None, "The table of results.")
flags.DEFINE_string("baseline", None, "The arm that the others are compared with.")
flags.DEFINE_float("smallest_difference", None, "The smallest difference that matters.")
flags.DEFINE_string("question", None, "The title of the page.")
flags.DEFINE_string("unit", "nats per token", "What the numbers are.")
flags.DEFINE_bool("higher_is_better", False, "For accuracies.")
flags.DEFINE_integer("most_seeds", st.MOST_SEEDS, "The largest number of seeds.", lower_bound=1)
flags.DEFINE_string("workdir", None, "Where the page goes.")
FLAGS = flags.FLAGS


def main() -> int:
    jax.config.update("jax_platforms", "cpu")
    table = cli.required("table", "the CSV file of results; it may also stand first, without the flag's name")
    baseline = cli.required("baseline", "the arm that the others are compared with")
    smallest_difference = cli.required("smallest_difference", "the smallest difference that matters")
    results = judge_table(
        read_table(table),
        baseline=baseline,
        smallest_difference=smallest_difference,
        question=FLAGS.question,
        most=FLAGS.most_seeds,
        unit=FLAGS.unit,
        lower_is_better=not FLAGS.higher_is_better,
    )
    folder = RunFolder(FLAGS.workdir or Path(table).with_suffix(""))
    folder.make()
    records.write(results, folder, RESULTS)
    print(f"{with_marks(results)}\nreport: {write_pages(results, folder.path)}")
    return 0


if __name__ == "__main__":
    cli.run(main, PAGE, first="table")
