"""Runs an ablation study: `python -m experiments.ablate --help`."""

from __future__ import annotations

from absl import flags
from rich.console import Console

from experiments import cli, studies
from gpt_jax.ablation.plan import make_plan
from gpt_jax.ablation.report import write_report
from gpt_jax.ablation.results import write_results
from gpt_jax.ablation.runner import Runner
from gpt_jax.ablation.show import show_plan
from gpt_jax.runs.compilation import enable_compilation_cache
from gpt_jax.training.programs import Programs

PAGE = """
Run an ablation study, from a question to a report.

  python -m experiments.ablate --config=configs/ablations/NAME.py --workdir=DIR [--seeds=N] [--smoke]
  python -m experiments.ablate --config=configs/ablations/kv_heads.py --workdir=runs/kv --config.data.path=FILE.txt

  --config=FILE.py       The study: get_config() is the base, get_study(base) the question and its arms (required).
  --config.KEY=VALUE     Changes a setting of the base, and so of every arm.
  --workdir=DIR          The study's folder (required): study.json, runs/, results.json, results.csv, report.html.
                         Finished runs in it are skipped, interrupted ones go on. A run is trained again where what
                         decides its numbers has changed, and measured again where only that has; a line says why.
  --seeds=N              Seeds 0 to N − 1 in place of the study's; more of them later reuse the groups that ran.
  --learning_rates=A,B   Rates to sweep for every arm in place of the study's.
  --smoke                Everything at a tiny size, in about a minute; it decides nothing.
  --jobs=N               Run N processes at once.
  --together=N           Train N seeds in one program, in place of what is measured to be faster at the start.
  --shard=I/N            Only the I-th of N parts of the runs (I from 1 to N), for a launcher of many hosts that share
                         DIR or whose runs/ folders are put together afterwards.
  --force                Rank arms that are not within 1% of the baseline's budget too.
  --dry                  Print the arms, what they cost and how many runs they take, and stop.
  --helpfull             All flags, those of the libraries too.

In one seed all arms have the same initial values of the parameters that they share, the same data in the same order
and the same validation tokens. They may differ in the study's declared knobs only. A copy of the baseline must be
bit-equal to it.

Ctrl-C saves a checkpoint and stops, a crash or kill -9 costs what was done since the last checkpoint; the same command
goes on. Exit codes: 0 finished, 1 failed, 2 wrong command line, configuration or study, 75 interrupted and saved.
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
cli.define_config()
FLAGS = flags.FLAGS


def main() -> int:
    workdir = cli.required("workdir", "the folder that the study is written to")
    console, shard = Console(), studies.shard_from_flags()
    enable_compilation_cache()
    plan, programs = make_plan(studies.study_from_flags()), Programs()
    if FLAGS.dry:
        show_plan(make_plan(plan.study, FLAGS.together or 1), console)
        return 0
    plan = studies.begin(plan, workdir, shard is not None, programs)
    if shard is None:
        show_plan(plan, console)
    if FLAGS.jobs > 1:
        status = studies.run_jobs(FLAGS.jobs)
    else:
        status = Runner(plan, workdir, console, programs).run(shard or (0, 1))
    results = write_results(workdir)
    print(f"\n{results.verdict}\nreport: {write_report(workdir)}")
    if status == "interrupted":
        print(f"interrupted; to resume:\n  {cli.command()}")
    return {"finished": 0, "failed": cli.FAILURE, "interrupted": cli.SAVED}[status]


if __name__ == "__main__":
    cli.run(main, PAGE)
