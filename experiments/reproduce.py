"""Runs a study again from its claim: `python -m experiments.reproduce --help`."""

from __future__ import annotations

from absl import flags
from rich.console import Console

from experiments import cli
from gpt_jax.ablation.claim import open_claim, read_claim
from gpt_jax.ablation.report import write_report
from gpt_jax.ablation.reproduce import compare_outcomes, plan_again
from gpt_jax.ablation.results import write_results
from gpt_jax.ablation.runner import Runner, write_plan
from gpt_jax.ablation.show import show_plan
from gpt_jax.config.errors import UserError
from gpt_jax.runs import processes
from gpt_jax.runs.compilation import enable_compilation_cache
from gpt_jax.runs.folder import RunFolder

PAGE = """
Run a study again from its claim, and say whether it came out the same.

  python -m experiments.reproduce runs/kv/claim.json --workdir=runs/kv-again [--seeds=N] [--data.path=FILE.txt]

  CLAIM.json             The claim that experiments.ablate wrote (required): the frozen study, its outcome, the
                         addresses of its runs, versions and devices.
  --workdir=DIR          The folder of the new study (required), not that of the claim. The same command goes on where
                         it was interrupted.
  --seeds=N              Repeat the first N of the claim's seeds.
  --data.path=FILE       Where the text lies here. Its content and its file's name must be those of the claim.
  --helpfull             All flags, those of the libraries too.

Where devices, versions, settings and code are the claim's, every value must be bit-equal to the claim's. Elsewhere
every arm's difference from the baseline must lie within the claim's interval.

Exit codes: 0 the same, 1 not the same, failed, or nothing to compare with, 2 wrong command line or claim, 75
interrupted and saved.
"""

flags.DEFINE_string("claim", None, "The claim.")
flags.DEFINE_string("workdir", None, "The folder of the new study.")
flags.DEFINE_integer("seeds", None, "Number of seeds.", lower_bound=1)
flags.DEFINE_string("data.path", None, "Where the text lies.")
cli.define_processes()
FLAGS = flags.FLAGS


def main() -> int:
    file = cli.required("claim", "the claim.json of a study; it may also stand first, without the flag's name")
    workdir = cli.required("workdir", "the folder that the new study is written to")
    claim, folder, console = open_claim(file), RunFolder(workdir), Console()
    known = read_claim(folder)
    if known is not None and known[0].frozen_hash == claim.frozen_hash:
        raise cli.UsageError("--workdir holds the claim itself, whose runs are done: choose another folder")
    enable_compilation_cache()
    plan, grouping = plan_again(claim, FLAGS.seeds, FLAGS["data.path"].value)
    write_plan(plan, workdir, cli.command(), grouping, claim.frozen.is_forced)
    show_plan(plan, console)
    status = Runner(plan, workdir, console).run()
    if not processes.speaks():  # process 0 compares
        return cli.SAVED if status == "interrupted" else 0
    write_results(workdir)
    print(f"\nreport: {write_report(workdir)}")
    if status == "interrupted":
        print(f"interrupted; to resume:\n  {cli.command()}")
        return cli.SAVED
    found = read_claim(folder)
    if status == "failed" or found is None or found[0].outcome is None:
        raise UserError(f"some runs failed: {folder} says which, and the same command tries them again")
    reproduction = compare_outcomes(claim, found[0].outcome)
    print(reproduction.sentence)
    return 0 if reproduction.is_same else cli.FAILURE


if __name__ == "__main__":
    cli.run(main, PAGE, first="claim")
