"""Runs that differ in seeds and learning rates alone, trained in one program, each in its own folder."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from gpt_jax.config import Config
from gpt_jax.config.errors import UserError
from gpt_jax.data import Batch
from gpt_jax.runs.checkpoint import CheckpointError, Restored
from gpt_jax.runs.compilation import enable_compilation_cache
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.load import Workdir
from gpt_jax.runs.loop import Course, Loop, TrainingDiverged
from gpt_jax.runs.session import Outcome, Session
from gpt_jax.training.programs import Programs
from gpt_jax.training.sharding import make_mesh, replicate, shard_batch
from gpt_jax.training.state import REST, TrainState, given_by
from gpt_jax.training.step import Metrics
from gpt_jax.training.together import lane, stack, stack_rows

StepTogether = Callable[[TrainState, Sequence[Batch]], tuple[TrainState, Sequence[Metrics]]]


def train_together(
    configs: Sequence[Config], workdirs: Sequence[Workdir], *, programs: Programs | None = None
) -> list[Outcome | TrainingDiverged]:
    """Trains runs that differ in seeds and learning rates alone in one program, each in its folder, silently.

    Losses agree with `train`'s to rounding, not bit for bit. A group, started again as it was, goes on from the newest
    step of which each run has a good checkpoint, and gives the same, bit for bit, as one that was not interrupted; for
    that a run keeps two checkpoints at least. A run that diverges ends alone. Together runs are faster than one after
    the other where one leaves the device idle, and need as many times the memory.

    Raises:
      ValueError: as `train`; configurations that differ otherwise, or ask for pmap or Weights & Biases, which has one
        run in a process.
    """
    enable_compilation_cache()
    programs, mesh = Programs() if programs is None else programs, make_mesh()
    with ExitStack() as held:
        runs = [Session.open(c, workdir, True, held, 2) for c, workdir in zip(configs, workdirs, strict=True)]
        first = runs[0].config
        if any(_with_luck_of(first, run.config) != first for run in runs):
            raise UserError("runs that train together may differ in seed and learning rate only")
        if first.train.parallel != "jit" or first.wandb is not None:
            raise UserError("runs can't train together by pmap, nor with wandb: take them one after the other")
        states, starts = _states_together(runs, mesh, programs)
        if min(starts) >= first.train.steps:
            return [run.outcome(start, was_done=True) for run, start in zip(runs, starts, strict=True)]
        interrupts, quiet = held.enter_context(Interrupts()), Console(quiet=True)
        loops = [
            held.enter_context(run.loop(start, mesh, interrupts, quiet, programs, False))
            for run, start in zip(runs, starts, strict=True)
        ]
        given = replicate(stack([given_by(run.config) for run in runs]), mesh)
        step = programs.step_together(first, mesh)

        def place_and_step(states: Any, rows: Any) -> Any:
            return step(states, shard_batch(stack_rows(rows), mesh, "vmap", first.train.accumulate), given)

        batches = [run.batches(start) for run, start in zip(runs, starts, strict=True)]
        ends = run_together(loops, place_and_step, states, batches, starts)
        return [run.outcome(end) if isinstance(end, int) else end for run, end in zip(runs, ends, strict=True)]


def _with_luck_of(first: Config, config: Config) -> Config:
    """`config` with the seeds and the learning rate of `first`."""
    data = dataclasses.replace(config.data, seed=first.data.seed)  # type: ignore[type-var]
    optimizer = dataclasses.replace(config.optimizer, learning_rate=first.optimizer.learning_rate)  # type: ignore[type-var]
    return dataclasses.replace(config, seed=first.seed, data=data, optimizer=optimizer)


def _states_together(runs: Sequence[Session], mesh: Mesh, programs: Programs) -> tuple[TrainState, list[int]]:
    """The states to begin with, stacked, and the number of each one's updates."""
    restored = _restore_together(runs, programs.templates(runs[0].config, mesh))
    begun = [run.state(one, mesh, programs) for run, one in zip(runs, restored, strict=True)]
    return replicate(stack([state for state, _ in begun]), mesh), [start for _, start in begun]


def _restore_together(runs: Sequence[Session], templates: Any) -> list[Restored | None]:
    """Of runs that diverged the newest checkpoint, of the others that of the newest step of which all of them have a
    good one; Nones where there is none.
    """
    found = [run.checkpoints.restore_newest(templates, move_damaged=True) for run in runs]
    going = [i for i, one in enumerate(found) if one is None or not _has_diverged(runs[i].config, one)]
    if not going:
        return found
    for step in sorted(set.intersection(*(set(runs[i].checkpoints.steps()) for i in going)), reverse=True):
        try:
            for i in going:
                found[i] = runs[i].checkpoints.restore(step, templates)
            return found
        except CheckpointError as error:
            warnings.warn(f"{error}; going back to the checkpoint before it", stacklevel=2)
            runs[i].checkpoints.move_damaged([step])
    return [None if i in going else one for i, one in enumerate(found)]


def _has_diverged(config: Config, restored: Restored) -> bool:
    return int(restored.trees[REST]["skipped_in_row"]) >= config.train.max_skipped


def run_together(
    loops: Sequence[Loop],
    step: StepTogether,
    states: TrainState,
    batches: Sequence[Iterator[Batch]],
    starts: Sequence[int],
) -> list[int | TrainingDiverged]:
    """Goes with all loops at once; returns how each ended: the number of its updates, or why it diverged.

    They start after as many updates each, but for runs that diverged before. A run that ended keeps its lane, unseen,
    so that the program and with it the others' numbers stay.
    """
    cut = jax.jit(lane)
    courses: dict[int, Course] = {
        i: loop.course(lambda i=i: cut(states, i), rows, start)  # type: ignore[misc]
        for i, (loop, rows, start) in enumerate(zip(loops, batches, starts, strict=True))
    }
    ends: dict[int, int | TrainingDiverged] = {}
    rows: dict[int, Batch] = {}

    def advance(i: int, move: Callable[[], Batch]) -> None:
        try:
            rows[i] = move()
        except StopIteration as end:
            ends[i] = end.value
        except TrainingDiverged as error:
            ends[i] = error

    for i, course in courses.items():
        advance(i, partial(next, course))
    while len(ends) < len(courses):
        some = next(iter(rows.values()))  # for a lane that ended before it had any
        states, metrics = step(states, [rows[i] if i in rows else some for i in courses])
        for i, course in courses.items():
            if i not in ends:
                advance(i, partial(course.send, metrics[i]))
    return [ends[i] for i in courses]
