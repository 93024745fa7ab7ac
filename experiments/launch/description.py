"""What is launched: one frozen description that every target reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from experiments.cli import UsageError
from experiments.launch import hardware

Target = Literal["tpu", "skypilot", "slurm", "local"]
TARGETS: tuple[str, ...] = get_args(Target)
BATCH = ("slurm", "skypilot")  # the targets whose schedulers do the retries
NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
SAVED = 75  # the exit code of a command that was interrupted and saved: run again to continue


@dataclass(frozen=True)
class Launch:
    """A command and where it runs.

    Attributes:
      name: also the name of the slice, its labels, and the folder `launch/NAME` of the work folder.
      command: the words of the command, without a shell.
      workdir: the run's or the study's folder.
      type: the slice type (`tpu`), or an accelerator as SkyPilot writes it.
      processes: processes on this machine (`local`), or nodes (`slurm`, `skypilot`).
      retries: how many times a command that did not end by itself is started again.
      max_hours: hours on a machine, over all tries; None means no limit.
      price, max_cost: dollars per chip and hour, and in total for all slices.
      shards: independent slices of one study.
    """

    name: str
    target: Target
    command: tuple[str, ...]
    workdir: str
    zone: str | None
    type: str | None
    runtime_version: str | None
    project: str | None
    spot: bool
    processes: int
    retries: int
    max_hours: float | None
    price: float | None
    max_cost: float | None
    shards: int

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError(
                f"--name={self.name} must be at most 40 lower-case letters, digits and hyphens, and start with a letter"
            )
        if not self.command:
            raise UsageError("there is no command: write it after --, as in -- python -m experiments.train --config=…")
        self._check_target()
        self._check_limits()
        own = [word for word in self.command if word.split("=")[0] in ("--workdir", "-workdir")]
        if own and own != [f"--workdir={self.workdir}"]:
            raise UsageError(f"the command has its own {own[0]}: give --workdir once, before --")
        if self.shards > 1 and self.module != "experiments.ablate":
            raise UsageError("--shards divides a study: the command must be python -m experiments.ablate")

    def _check_target(self) -> None:
        missing = [flag for flag in ("zone", "type") if getattr(self, flag) is None]
        if self.target == "tpu":
            if missing:
                raise UsageError(f"--{missing[0]} is required for --target=tpu")
            if not self.workdir.startswith("gs://"):
                raise UsageError("--workdir must be gs://BUCKET/DIR: the disks of a TPU slice are deleted with it")
            if self.runtime_version is None:
                try:
                    hardware.runtime_version(str(self.type))
                except ValueError as error:
                    raise UsageError(f"{error} (one that is newer needs --runtime_version)") from None
            if self.processes != 1:
                raise UsageError("--processes is for the other targets: a TPU slice runs one process on each host")
        elif self.target == "skypilot" and self.type is None:
            raise UsageError("--type is required for --target=skypilot: an accelerator, such as tpu-v6e-8 or H100:8")
        elif self.target == "local" and self.shards > 1:
            raise UsageError("--shards needs machines of their own: on one machine, experiments.ablate has --jobs")
        if self.target == "skypilot" and not self.workdir.startswith("gs://"):
            raise UsageError("--workdir must be gs://BUCKET/DIR: SkyPilot's machines share no disk")

    def _check_limits(self) -> None:
        if (self.max_cost is None) != (self.price is None):
            raise UsageError("--max_cost and --price go together: a price per chip and hour in dollars")
        if self.max_cost is not None and self.target != "tpu":
            raise UsageError("--max_cost is for --target=tpu: limit the others by --max_hours")
        if self.price is not None:
            try:
                hardware.chips(str(self.type))
            except ValueError as error:
                raise UsageError(f"--max_cost needs to know the number of chips: {error}") from None

    @property
    def module(self) -> str | None:
        """The module that the command runs by `python -m`, if it is one."""
        words = self.command
        return words[words.index("-m") + 1] if "-m" in words[:-1] else None

    @property
    def hourly(self) -> float | None:
        """Dollars per hour of one slice."""
        return None if self.price is None else self.price * hardware.chips(str(self.type))

    @property
    def hours(self) -> float | None:
        """The hours that each slice may run, by `max_hours` and `max_cost`; None means no limit."""
        limits = [] if self.max_hours is None else [self.max_hours]
        if self.max_cost is not None and self.hourly is not None:
            limits.append(self.max_cost / (self.hourly * self.shards))
        return min(limits) if limits else None


@dataclass(frozen=True)
class Slice:
    """One of the independent machines, or groups of machines, of a launch."""

    name: str
    command: tuple[str, ...]


def slices(launch: Launch) -> tuple[Slice, ...]:
    """The slices of a launch, each with its whole command; shard I of N is NAME-I, with the flag --shard=I/N."""
    command = launch.command
    if launch.module is not None and launch.module.startswith("experiments."):
        if f"--workdir={launch.workdir}" not in command:
            command = (*command, f"--workdir={launch.workdir}")
    if launch.shards == 1:
        return (Slice(launch.name, command),)
    count = launch.shards
    return tuple(Slice(f"{launch.name}-{i}", (*command, f"--shard={i}/{count}")) for i in range(1, count + 1))
