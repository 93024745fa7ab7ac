"""Evaluates a run: `python -m experiments.evaluate --help`."""

from __future__ import annotations

from absl import flags
from rich.console import Console

from experiments import cli
from gpt_jax.config.mesh import ALL_DATA
from gpt_jax.runs.console import show_evaluation
from gpt_jax.runs.evaluate import evaluate_run

PAGE = """
Evaluate a run on its whole validation set.

  python -m experiments.evaluate --workdir=DIR [--step=STEP] [--data=PATH]

  --workdir=DIR          The run's folder (required).
  --step=STEP            Evaluate the checkpoint of this step (default: the newest good one).
  --data=PATH            Evaluate on this text, a file, folder or glob, instead of the data of the run. Only the
                         part that training would hold out is read.
  --context_length=N     The length of rows in tokens (default: the model's context).
  --mesh=AXES            Divide a large model over all devices, for example --mesh=tensor=-1
                         (default: each device has all of it).
  --helpfull             List all flags, including those of the libraries.

Prints loss, perplexity, bits per byte (of text) and accuracy, each with its standard error over rows, and
writes them to DIR/evaluation.json. The validation tokens are split into rows that overlap by one token, so that
each token is predicted exactly once. Batch size and number of devices do not change the results.

Exit codes: 0 done, 1 failed, 2 wrong command line.
"""

flags.DEFINE_string("workdir", None, "The run's folder.")
flags.DEFINE_integer("step", None, "The step of the checkpoint.")
flags.DEFINE_string("data", None, "Text to evaluate on.")
flags.DEFINE_integer("context_length", None, "The length of rows in tokens.", lower_bound=1)
flags.DEFINE_string("mesh", ALL_DATA, "The axes of the mesh, as in --config.mesh.")
cli.define_processes()
FLAGS = flags.FLAGS


def main() -> int:
    workdir = cli.required("workdir", "the folder of the run to evaluate")
    step, result = evaluate_run(workdir, FLAGS.step, FLAGS.data, FLAGS.context_length, FLAGS.mesh)
    show_evaluation(Console(), step, result)
    return 0


if __name__ == "__main__":
    cli.run(main, PAGE)
