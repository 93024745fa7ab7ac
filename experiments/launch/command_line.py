"""The flags of `experiments.launch`, and the description that they make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import cli
from experiments.launch.description import TARGETS, Launch
from experiments.launch.start import Options

ACTIONS = ("status", "logs", "stop", "list")
RETRIES = 20

flags.DEFINE_enum("action", None, ACTIONS, "A subcommand, also as the first word.")
flags.DEFINE_string("name", None, "The launch's name.")
flags.DEFINE_enum("target", "tpu", TARGETS, "Where it runs.")
flags.DEFINE_string("workdir", None, "The folder of the run or the study.")
flags.DEFINE_string("zone", None, "A zone of Google Cloud.")
flags.DEFINE_string("type", None, "The type of a slice.")
flags.DEFINE_string("runtime_version", None, "The image of a TPU VM.")
flags.DEFINE_string("project", None, "The project of Google Cloud.")
flags.DEFINE_bool("spot", False, "Cheaper machines that may be taken away.")
flags.DEFINE_integer("processes", 1, "Processes or nodes.", lower_bound=1)
flags.DEFINE_integer("retries", None, "Starts after the first.", lower_bound=0)
flags.DEFINE_float("max_hours", None, "Hours on a machine.", lower_bound=0.0)
flags.DEFINE_float("price", None, "Dollars per chip and hour.", lower_bound=0.0)
flags.DEFINE_float("max_cost", None, "Dollars in total.", lower_bound=0.0)
flags.DEFINE_integer("shards", 1, "Slices of one study.", lower_bound=1)
flags.DEFINE_bool("detach", False, "Do not wait.")
flags.DEFINE_bool("adopt", False, "Go on with what a launcher that is gone left behind.")
flags.DEFINE_bool("any_region", False, "Accept a bucket in another region.")
flags.DEFINE_bool("dry_run", False, "Print the commands only.")
flags.DEFINE_string("bundle", None, "A bundle that is uploaded already; for the launcher of a detached launch.")
flags.DEFINE_bool("follow", False, "Go on until the end.", short_name="f")
flags.DEFINE_integer("worker", 0, "Whose log.", lower_bound=0)
FLAGS = flags.FLAGS


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of argv up to `--`, with `ACTION NAME` written as flags, and the command after it."""
    words = list(arguments)
    command: list[str] = []
    if "--" in words:
        at = words.index("--")
        words, command = words[:at], words[at + 1 :]
    words[0] = str(Path(words[0]).parent)  # …/launch, which messages call the program
    if words[1:] and words[1] in ACTIONS:
        words[1] = f"--action={words[1]}"
        if words[2:] and not words[2].startswith("-"):
            words[2] = f"--name={words[2]}"
    return words, command


def launch_from_flags(command: Sequence[str]) -> Launch:
    """The description that the flags make.

    Raises:
      UsageError: a flag is missing, or does not go with another.
    """
    values: Any = FLAGS
    if any(word.split("=")[0] in cli.ONCE for word in command):
        raise cli.UsageError("--restart would start again after every interruption: give the command another --workdir")
    retries = RETRIES if values.retries is None else values.retries
    if values.retries is not None and values.target == "skypilot":
        raise cli.UsageError("--retries is not for --target=skypilot, which recovers a managed job as often as needed")
    return Launch(
        name=cli.required("name", "what the launch is called"),
        target=values.target,
        command=tuple(command),
        workdir=cli.required("workdir", "the folder of the run or the study"),
        zone=values.zone,
        type=values.type,
        runtime_version=values.runtime_version,
        project=values.project,
        spot=values.spot,
        processes=values.processes,
        retries=retries,
        max_hours=values.max_hours,
        price=values.price,
        max_cost=values.max_cost,
        shards=values.shards,
    )


def options_from_flags(words: Sequence[str]) -> Options:
    """How it is started; `words` are the flags as they were given."""
    values: Any = FLAGS
    if values.detach and values.target in ("slurm", "skypilot"):
        raise cli.UsageError(f"--detach is not for --target={values.target}, whose scheduler never needs this machine")
    return Options(values.detach, values.adopt, values.any_region, values.bundle, tuple(words))
