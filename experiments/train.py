"""Trains a model: `python -m experiments.train --help`."""

from __future__ import annotations

import shlex

from absl import flags
from rich.console import Console

from experiments import BEGAN, cli
from gpt_jax.config import Text
from gpt_jax.runs.console import show_end, show_next, show_sample
from gpt_jax.runs.load import load_run
from gpt_jax.runs.longer import longer_command
from gpt_jax.runs.train import train

PAGE = """
Train a GPT, or continue an interrupted run.

  python -m experiments.train --config=FILE.py --workdir=DIR [--config.KEY=VALUE ...]

  --config=FILE.py       The configuration (required); FILE.py:ARG passes ARG to its get_config. Start with
                         configs/quickstart.py.
  --config.KEY=VALUE     Change one setting, for example
                           --config.seed=1                       --config.train.steps=2000
                           --config.optimizer.learning_rate=3e-4 --config.train.batch_size=64
                           --config.data.path=book.txt           --config.model.attention.kv_heads=1
                           --config.model.mlp.type=GatedMlp      --config.train.clip_norm=None
                         An unknown setting is refused, with the name of the most similar one.
  --config.init_from=DIR Start from the parameters of the run in DIR, made by training or experiments.convert.
                         Both runs must have the same tokenizer and the same shapes of parameters, which
                         configs/finetune.py takes from DIR. --config.model.adapter.type=Lora trains an adapter
                         and freezes everything else.
  --workdir=DIR          The run's folder (required), for checkpoints, metrics.jsonl, loss.png and TensorBoard
                         events. A run that is already there continues from its newest good checkpoint, with the
                         same configuration, except that train.steps may grow, and the schedule with it as far
                         as no step that was taken changes. gs://BUCKET/DIR works if gcsfs is installed.
  --noresume             Refuse to continue a run that is already there.
  --restart              Start again from step 0. What is there is moved to DIR/aside; nothing is deleted.
  --profile              Write a profiler trace of a few steps to DIR/profile.
  --helpfull             List all flags, including those of the libraries.

Ctrl-C, SIGTERM, a closed terminal (except under nohup) and a closed output (as by | head) save a checkpoint
and stop; a second Ctrl-C stops at once. The same command continues the run, with the same losses and
parameters, bit for bit, as without the interruption, given the same hardware, versions and number of devices
(on GPUs with XLA_FLAGS=--xla_gpu_deterministic_ops=true).

Exit codes: 0 finished, 1 failed, 2 wrong command line or configuration, 70 hung and ended by the watchdog
(--config.watchdog.abort=True), 75 interrupted and saved, 129 so by a closed terminal, 141 by a closed output;
before the first step 128 + N by signal N (130: Ctrl-C).
"""

flags.DEFINE_string("workdir", None, "The run's folder.")
flags.DEFINE_bool("resume", True, "Continue the run in the folder, if there is one.")
flags.DEFINE_bool("restart", False, "Start again from step 0, and move aside what is there.")
flags.DEFINE_bool("profile", False, "Write a profiler trace of a few steps.")
cli.define_config()
cli.define_processes()
FLAGS = flags.FLAGS


def main() -> int:
    """Trains, prints what to do next, and returns the exit code."""
    workdir = cli.required("workdir", "the folder that the run is written to")
    config = cli.config_from_flags()
    console = Console()
    how = {"resume": FLAGS.resume, "restart": FLAGS.restart, "profile": FLAGS.profile}
    outcome = train(config, workdir, **how, console=console, began=BEGAN)
    if outcome.status == "interrupted":
        print(f"interrupted after step {outcome.step:,}; to continue:\n  {cli.command()}")
        return cli.SAVED
    if outcome.status == "already finished":
        print(f"the run is already finished, after step {outcome.step:,}")
    elif isinstance(config.data, Text):
        show_sample(console, *load_run(workdir), config)
    folder, prompt = shlex.quote(workdir), shlex.quote(config.prompt if config.prompt.isprintable() else "A")
    show_end(console, outcome.validation, {"checkpoint": outcome.checkpoint, "loss curve": outcome.loss_plot})
    longer, changes = longer_command(workdir)
    following = {
        "sample more": f"python -m experiments.sample --workdir={folder} --prompt={prompt} --top_k=40",
        "evaluate": f"python -m experiments.evaluate --workdir={folder}",
        longer: cli.command(*(f"{flag}={value}" for flag, value in ({"--workdir": workdir} | changes).items())),
    }
    if config.init_from is None:
        ablated = cli.command(f"--workdir={workdir}-mqa", "--config.model.attention.kv_heads=1")
        following["ablate: one key/value head"] = ablated
    show_next(console, following)
    return 0


if __name__ == "__main__":
    cli.run(main, PAGE)
