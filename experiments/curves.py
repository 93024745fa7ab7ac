"""Trains mixers on tasks and draws their accuracy over length: `python -m experiments.curves --help`."""

from __future__ import annotations

import dataclasses

from absl import flags
from rich.console import Console

from configs.mixers import MIXERS, TASKS, get_config
from experiments import cli
from gpt_jax.analysis.cost import count_parameters
from gpt_jax.analysis.suites import Result
from gpt_jax.config import Config
from gpt_jax.config.conversion import from_config_dict
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.load import run_config
from gpt_jax.runs.suites import PICTURE, QUESTIONS, evaluate_suites, show, write
from gpt_jax.runs.train import train

PAGE = f"""
Train each mixer of configs/mixers.py on each of its tasks, and ask all of them at half to four times that length.

  python -m experiments.curves --workdir=DIR [--mixers=NAMES] [--tasks=NAMES]

  --workdir=DIR          The folder for the runs and the results (required).
  --mixers=NAMES         Some of {", ".join(MIXERS)} (default: all).
  --tasks=NAMES          Some of {", ".join(TASKS)} (default: all).
  --questions=N          The number of questions at each length (default: {QUESTIONS}).
  --steps=N              Train for N steps instead of those of configs/mixers.py.
  --helpfull             List all flags, including those of the libraries.

Writes suites.json, suites.csv and suites.png, with a curve for each mixer and its 95% interval beside the level of
chance. The same command goes on where it was interrupted.

Exit codes: 0 done, 1 failed, 2 wrong command line, 75 interrupted and saved.
"""

flags.DEFINE_string("workdir", None, "The folder for the runs and the results.")
flags.DEFINE_list("mixers", list(MIXERS), "Names of mixers.")
flags.DEFINE_list("tasks", list(TASKS), "Names of tasks.")
flags.DEFINE_integer("questions", QUESTIONS, "The number of questions at each length.", lower_bound=2)
flags.DEFINE_integer("steps", None, "Steps of each run.", lower_bound=1)
FLAGS = flags.FLAGS


def main() -> int:
    folder = RunFolder(cli.required("workdir", "the folder for the runs"))
    # All of them first, so that a wrong name is refused before anything is trained.
    configs = {(mixer, task): configuration(mixer, task) for mixer in FLAGS.mixers for task in FLAGS.tasks}
    arms: dict[str, list[Result]] = {}
    sizes: dict[str, int] = {}
    for mixer in FLAGS.mixers:
        arms[mixer] = []
        for task in FLAGS.tasks:
            place = folder.path / f"{mixer}-{task}"
            print(f"{mixer} on {task}", flush=True)
            if train(configs[mixer, task], place, console=Console(quiet=True)).status == "interrupted":
                print(f"interrupted; to continue:\n  {cli.command()}")
                return cli.SAVED
            arms[mixer] += evaluate_suites(place, [task], questions=FLAGS.questions)
            sizes[mixer] = count_parameters(run_config(RunFolder(place)).model)[0]
    write(folder, {"parameters": sizes, "questions": FLAGS.questions}, arms)
    show(Console(), arms)
    print("parameters: " + ", ".join(f"{mixer} {size:,}" for mixer, size in sizes.items()))
    print(f"picture: {folder.file(PICTURE)}")
    return 0


def configuration(mixer: str, task: str) -> Config:
    config = from_config_dict(Config, get_config(f"{mixer}_{task}"))
    if FLAGS.steps is None:
        return config
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=FLAGS.steps))


if __name__ == "__main__":
    cli.run(main, PAGE)
