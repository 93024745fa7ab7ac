"""Evaluates a run: `python -m experiments.evaluate --help`."""

from __future__ import annotations

from absl import flags
from rich.console import Console

from experiments import cli
from gpt_jax.runs.console import show_evaluation
from gpt_jax.runs.evaluate import evaluate_run

PAGE = """
Evaluate a run on its whole validation set.

  python -m experiments.evaluate --workdir=DIR [--step=STEP] [--data=PATH]

  --workdir=DIR          The run's folder (required).
  --step=STEP            The checkpoint of this step; without it, the newest good one.
  --data=PATH            Text to evaluate on in place of the run's own, a file, folder or glob: the part of it
                         that training would hold out.
  --context_length=N     Rows of so many tokens (default: the model's context).
  --helpfull             All flags, those of the libraries too.

Prints loss, perplexity, bits per byte (of text) and accuracy, each with its standard error over rows, and
writes them to DIR/evaluation.json. The stream of validation tokens is cut into rows that overlap by one token,
so that every token is predicted exactly once from its row's context; batch size and devices change no number.

Exit codes: 0 done, 1 failed, 2 wrong command line.
"""

flags.DEFINE_string("workdir", None, "The run's folder.")
flags.DEFINE_integer("step", None, "The checkpoint of this step.")
flags.DEFINE_string("data", None, "Text to evaluate on.")
flags.DEFINE_integer("context_length", None, "Rows of so many tokens.", lower_bound=1)
FLAGS = flags.FLAGS


def main() -> int:
    workdir = cli.required("workdir", "the folder of the run to evaluate")
    step, result = evaluate_run(workdir, FLAGS.step, FLAGS.data, FLAGS.context_length)
    show_evaluation(Console(), step, result)
    return 0


if __name__ == "__main__":
    cli.run(main, PAGE)
