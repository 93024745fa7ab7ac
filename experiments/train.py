"""Trains a model: `python -m experiments.train --help`."""

from __future__ import annotations

import shlex

from absl import flags
from rich.console import Console

from experiments import cli
from gpt_jax.config import Text
from gpt_jax.runs.console import show_end, show_next, show_sample
from gpt_jax.runs.load import load_run
from gpt_jax.runs.train import train

PAGE = """
Train a GPT, or go on with a run that was interrupted.

  python -m experiments.train --config=FILE.py --workdir=DIR [--config.KEY=VALUE ...]

  --config=FILE.py       The configuration (required); FILE.py:ARG passes ARG to its get_config. Start with
                         configs/quickstart.py.
  --config.KEY=VALUE     Changes one setting, for example
                           --config.seed=1                       --config.train.steps=2000
                           --config.optimizer.learning_rate=3e-4 --config.train.batch_size=64
                           --config.data.path=book.txt           --config.model.attention.kv_heads=1
                           --config.model.mlp.type=GatedMlp      --config.train.clip_norm=None
                         A name that does not exist is answered with the nearest one that does.
  --config.init_from=DIR Begin with the parameters of the run in DIR, of training or of experiments.convert. Its
                         tokenizer must be this run's, its parameters must fit: configs/finetune.py takes over
                         both. --config.model.adapter.type=Lora trains an adapter alone.
  --workdir=DIR          The run's folder (required): checkpoints, metrics.jsonl, loss.png, TensorBoard events.
                         If it holds a run, that run goes on from its newest good checkpoint. The configuration
                         must be the same; train.steps may grow. gs://BUCKET/DIR works where gcsfs is installed.
  --noresume             Refuse to go on with a run that is there.
  --profile              Write a profiler trace of a few steps to DIR/profile.
  --helpfull             All flags, those of the libraries too.

Ctrl-C or SIGTERM saves a checkpoint and stops; a second Ctrl-C stops at once. The same command goes on, and
gives the losses and parameters of a run that was never interrupted, bit for bit, on the same hardware, versions
and number of devices (on GPUs with XLA_FLAGS=--xla_gpu_deterministic_ops=true).

Exit codes: 0 finished, 1 failed, 2 wrong command line or configuration, 75 interrupted and saved,
130 interrupted before the first step.
"""

flags.DEFINE_string("workdir", None, "The run's folder.")
flags.DEFINE_bool("resume", True, "Go on with the run in the folder, if there is one.")
flags.DEFINE_bool("profile", False, "Write a profiler trace of a few steps.")
cli.define_config()
FLAGS = flags.FLAGS


def main() -> int:
    workdir = cli.required("workdir", "the folder that the run is written to")
    config = cli.config_from_flags()
    console = Console()
    outcome = train(config, workdir, resume=FLAGS.resume, profile=FLAGS.profile, console=console)
    if outcome.status == "interrupted":
        print(f"interrupted after step {outcome.step:,}; to go on:\n  {cli.command()}")
        return cli.SAVED
    if outcome.status == "already finished":
        print(f"the run is finished already, after step {outcome.step:,} (a greater train.steps would go on)")
    elif isinstance(config.data, Text):
        show_sample(console, *load_run(workdir), config)
    folder, prompt = shlex.quote(workdir), shlex.quote(config.prompt if config.prompt.isprintable() else "A")
    show_end(console, outcome.validation, {"checkpoint": outcome.checkpoint, "loss curve": outcome.loss_plot})
    following = {
        "sample more": f"python -m experiments.sample --workdir={folder} --prompt={prompt} --top_k=40",
        "evaluate": f"python -m experiments.evaluate --workdir={folder}",
        "train longer": cli.command(f"--workdir={workdir}", f"--config.train.steps={2 * config.train.steps}"),
    }
    if config.init_from is None:
        ablated = cli.command(f"--workdir={workdir}-mqa", "--config.model.attention.kv_heads=1")
        following["ablate: one key/value head"] = ablated
    show_next(console, following)
    return 0


if __name__ == "__main__":
    cli.run(main, PAGE)
