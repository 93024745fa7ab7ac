"""Runs an ablation study: `python -m experiments.ablate --help`."""

from __future__ import annotations

from absl import flags
from rich.console import Console

from experiments import cli, studies
from gpt_jax.ablation.plan import make_plan
from gpt_jax.ablation.report import write_report
from gpt_jax.ablation.results import write_results
from gpt_jax.ablation.runner import Runner
from gpt_jax.ablation.sentence import with_marks
from gpt_jax.ablation.show import show_plan, show_power
from gpt_jax.ablation.stages import WHOLE
from gpt_jax.runs import processes
from gpt_jax.runs.compilation import enable_compilation_cache
from gpt_jax.training.programs import Programs

PAGE = """
Run an ablation study, from a question to a report.

  python -m experiments.ablate --config=configs/ablations/NAME.py --workdir=DIR [--seeds=N] [--smoke]
  python -m experiments.ablate --config=configs/ablations/kv_heads.py --workdir=runs/kv --config.data.path=FILE.txt

  --config=FILE.py[:ARG] The study: get_config(ARG) is the base, get_study(base, ARG) the question and its arms
                         (required). NAME.py:tuned finds the learning rate of each arm first; qk_norm sweeps it.
  --config.KEY=VALUE     Changes a setting of the base, and so of every arm.
  --workdir=DIR          The study's folder (required): study.json, runs/, results.json, results.csv, report.html.
                         Finished runs in it are skipped, interrupted ones go on. A run is trained again where what
                         decides its numbers has changed, and measured again where only that has; a line says why.
  --seeds=N              Seeds 0 to N − 1 in place of the study's; more of them later reuse the groups that ran.
  --learning_rates=A,B   The first rates that the tuning of every arm tries, or those to sweep where the endpoint is the
                         sensitivity to them, in place of the study's.
  --smoke                Everything at a tiny size, in about a minute; it decides nothing.
  --jobs=N               Run N processes at once.
  --together=N           Train N seeds in one program, in place of what is measured to be faster at the start.
  --shard=I/N            Only the I-th of N parts (I from 1 to N), for a launcher of many hosts that share DIR: all arms
                         of some seeds, and all trials of some arms. It exits with 75 while the tuning of other parts
                         is not finished.
  --force                Rank arms that are not within 1% of the baseline's budget too.
  --dry                  Print the arms, what they cost, how many runs they take, and which differences 3 to 40 seeds
                         would find, and stop. --noise=FOLDER takes the spread of paired differences from an earlier
                         study, --noise=NUMBER states it.
  --helpfull             All flags, those of the libraries too.

A study that tunes has two stages: every arm tries equally many settings, on seeds and text that the verdict does not
use, and then runs at its own best. More seeds later keep what was chosen.

A study may name suites as secondary endpoints, as configs/ablations/memory.py does: every run is asked after its
training, and all arms and endpoints are judged under one correction of their own, beside the verdict.

In one seed all arms have the same initial values of the parameters that they share, the same data in the same order
and the same validation tokens. They may differ in the study's declared knobs only. A copy of the baseline must be
bit-equal to it, in every part of the study.

Ctrl-C saves a checkpoint and stops, a crash or kill -9 costs what was done since the last checkpoint; the same command
goes on. Exit codes: 0 finished, 1 failed, 2 wrong command line, configuration or study, 75 interrupted or waiting, and
saved.
"""

flags.DEFINE_string("workdir", None, "The study's folder.")
flags.DEFINE_integer("seeds", None, "Number of seeds.", lower_bound=1)
flags.DEFINE_list("learning_rates", None, "Learning rates to sweep.")
flags.DEFINE_bool("smoke", False, "A tiny size.")
flags.DEFINE_integer("jobs", 1, "Processes.", lower_bound=1)
flags.DEFINE_integer("together", None, "Seeds in one program.", lower_bound=1)
flags.DEFINE_string("shard", None, "I/N: a part of the runs.")
flags.DEFINE_bool("force", False, "Rank unmatched arms.")
flags.DEFINE_bool("dry", False, "Print the plan only.")
flags.DEFINE_string("noise", None, "Spread of paired differences, for --dry.")
flags.DEFINE_string("job", None, "I/N: a slice of a stage, for the processes that --jobs starts.")
cli.define_config()
cli.define_processes()
FLAGS = flags.FLAGS
CODES = {"finished": 0, "failed": cli.FAILURE, "interrupted": cli.SAVED, "waiting": cli.SAVED}


def main() -> int:
    workdir = cli.required("workdir", "the folder that the study is written to")
    console, shard, job = Console(), studies.part_from_flags("shard"), studies.part_from_flags("job")
    enable_compilation_cache()
    if FLAGS.jobs > 1 and processes.are_several():
        raise cli.UsageError("--jobs starts processes on one host: leave it out where several processes train each run")
    plan, programs = make_plan(studies.study_from_flags()), Programs()
    if FLAGS.dry:
        show_plan(make_plan(plan.study, FLAGS.together or 1, 1 if shard is None else shard[1]), console)
        show_power(plan, FLAGS.noise, workdir, console)
        return 0
    if FLAGS.noise is not None:
        raise cli.UsageError("--noise goes with --dry: the runs themselves show the noise")
    plan = studies.begin(plan, workdir, shard, job is not None, programs)
    if job is not None:
        return CODES[Runner(plan, workdir, console, programs).run_slice(job)]
    if shard is None:
        show_plan(plan, console)
    if FLAGS.jobs > 1:
        status = studies.run_jobs(plan, workdir, FLAGS.jobs)
    else:
        status = Runner(plan, workdir, console, programs).run(shard or WHOLE)
    if not processes.speaks():
        return CODES[status]
    results = write_results(workdir)
    print(f"\n{with_marks(results)}\nreport: {write_report(workdir)}")
    if status == "interrupted":
        print(f"interrupted; to resume:\n  {cli.command()}")
    elif status == "waiting":
        print(f"the tuning of other shards is not finished: when it is, start this one again with\n  {cli.command()}")
    return CODES[status]


if __name__ == "__main__":
    cli.run(main, PAGE)
