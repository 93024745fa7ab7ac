"""Evaluates a run: `python -m experiments.evaluate --help`."""

from __future__ import annotations

from absl import flags
from rich.console import Console

from experiments import cli
from gpt_jax.config.mesh import ALL_DATA
from gpt_jax.runs.console import show_evaluation
from gpt_jax.runs.evaluate import evaluate_run
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.processes import speaks
from gpt_jax.runs.suites import NAMES, QUESTIONS, evaluate_suites, show

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
  --suite=NAMES          Ask questions with known answers instead, of some suites, separated by commas:
                         {names}.
                         A run on a task takes the suite of its task. docs/evaluate.md says what each asks.
  --lengths=N,M          With --suite: the lengths of questions in tokens (default: fractions and multiples
                         of the length that the run was trained on).
  --questions=N          With --suite: the number of questions at each length (default: {questions}).
  --helpfull             List all flags, including those of the libraries.

Prints loss, perplexity, bits per byte (of text) and accuracy, each with its standard error over rows, and
writes them to DIR/evaluation.json. The validation tokens are split into rows that overlap by one token, so that
each token is predicted exactly once. Batch size and number of devices do not change the results.

With --suite, prints accuracies with their 95% intervals beside the level of chance, and writes them to
suites.json, suites.csv and suites.png (not for the suite text alone) in DIR.

Exit codes: 0 done, 1 failed, 2 wrong command line.
""".format(names=",".join(NAMES), questions=QUESTIONS)

flags.DEFINE_string("workdir", None, "The run's folder.")
flags.DEFINE_integer("step", None, "The step of the checkpoint.")
flags.DEFINE_string("data", None, "Text to evaluate on.")
flags.DEFINE_integer("context_length", None, "The length of rows in tokens.", lower_bound=1)
flags.DEFINE_string("mesh", ALL_DATA, "The axes of the mesh, as in --config.mesh.")
flags.DEFINE_list("suite", None, "Names of suites.")
flags.DEFINE_list("lengths", None, "Lengths of questions in tokens.")
flags.DEFINE_integer("questions", QUESTIONS, "The number of questions at each length.", lower_bound=2)
cli.define_processes()
FLAGS = flags.FLAGS


def main() -> int:
    workdir = cli.required("workdir", "the folder of the run to evaluate")
    if FLAGS.suite is not None:
        return ask(workdir)
    if FLAGS.lengths is not None or FLAGS["questions"].present:
        raise cli.UsageError("--lengths and --questions need --suite: name one, or leave them out")
    step, result = evaluate_run(workdir, FLAGS.step, FLAGS.data, FLAGS.context_length, FLAGS.mesh)
    show_evaluation(Console(), step, result)
    return 0


def ask(workdir: str) -> int:
    if FLAGS.data is not None or FLAGS.context_length is not None:
        raise cli.UsageError("--suite asks on the data of the run, with --lengths: leave out --data, --context_length")
    lengths = FLAGS.lengths
    if lengths is not None and not all(length.isdecimal() and int(length) > 0 for length in lengths):
        raise cli.UsageError(f"--lengths must be numbers of tokens, such as 64,128, not {','.join(lengths)}")
    asked = None if lengths is None else [int(length) for length in lengths]
    results = evaluate_suites(workdir, FLAGS.suite, FLAGS.step, FLAGS.questions, asked, FLAGS.mesh)
    if speaks():
        show(Console(), {RunFolder(workdir).path.name: results})
    return 0


if __name__ == "__main__":
    cli.run(main, PAGE)
