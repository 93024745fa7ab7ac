"""Trains several runs in one program, each in its own folder.

The states of the runs are stacked, and the step is vmapped over them. One run is a *lane* of the stack. The loop is
that of a single run (`runs/loop.py`); its observer gives each run's own observer the lane of that run.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from gpt_jax.config import Config, RewindSpikes, divides_parameters, parse_mesh
from gpt_jax.config.errors import UserError
from gpt_jax.data import Batch
from gpt_jax.runs.checkpoint import CheckpointError, Restored
from gpt_jax.runs.compilation import enable_compilation_cache
from gpt_jax.runs.folder import Workdir
from gpt_jax.runs.goodput import Stopwatch
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.loop import RunObserver, TrainingDiverged, run_steps
from gpt_jax.runs.recompute import Recomputed
from gpt_jax.runs.session import Outcome, Session
from gpt_jax.runs.watchdog import HangWatch
from gpt_jax.training.programs import Programs
from gpt_jax.training.sharding import make_mesh, replicate, shard_batch
from gpt_jax.training.state import REST, TrainState, given_by
from gpt_jax.training.step import Metrics
from gpt_jax.training.together import lane, stack, stack_rows


def train_together(
    configs: Sequence[Config], workdirs: Sequence[Workdir], *, programs: Programs | None = None
) -> list[Outcome | TrainingDiverged]:
    """Trains runs that differ only in seeds and learning rates in one program, each in its folder, without display.

    Losses agree with those of `train` to rounding, not bit for bit. A group that is started again with the same
    configurations resumes from the newest step of which every run has a good checkpoint, and gives the same numbers,
    bit for bit, as an uninterrupted group; for this a run keeps at least two checkpoints. If one run diverges, the
    others continue. A group is faster than its runs one after the other if a single run leaves the device idle; it
    needs the memory of all its runs.

    Raises:
      UserError: as `train`; or the configurations differ in more, or ask for pmap or for Weights & Biases, which allows
        one run per process.
    """
    stopwatch = Stopwatch()
    enable_compilation_cache()
    programs, mesh = Programs() if programs is None else programs, make_mesh(axes=configs[0].mesh)
    with ExitStack() as held:
        held.enter_context(stopwatch.compilation())
        runs = [Session.open(c, workdir, True, held, 2) for c, workdir in zip(configs, workdirs, strict=True)]
        first = runs[0].config
        held.enter_context(HangWatch(first.watchdog, stopwatch, runs[0].folder))
        _check_alike([run.config for run in runs])
        states, starts, start = _states_together(runs, mesh, programs)
        if min(starts) >= first.train.steps:
            return [run.outcome(start, was_done=True) for run, start in zip(runs, starts, strict=True)]
        interrupts, quiet = held.enter_context(Interrupts([run.folder for run in runs])), Console(quiet=True)
        observers = [
            held.enter_context(run.observed(start, mesh, interrupts, quiet, programs, False, stopwatch))
            for run, start in zip(runs, starts, strict=True)
        ]
        given = replicate(stack([given_by(run.config) for run in runs]), mesh)
        step = programs.step_together(first, mesh)
        rows = map(stack_rows, zip(*(run.batches(start, mesh) for run in runs), strict=True))
        batches = (shard_batch(batch, mesh, "vmap", first.train.accumulate) for batch in rows)

        def step_fn(states: TrainState, batches: Batch) -> tuple[TrainState, list[Metrics]]:
            return step(states, batches, given)

        every = first.recompute_every
        checked = step_fn if every is None else Recomputed(step_fn, every, start)
        run_steps(checked, states, batches, start, GroupObserver(observers))
        return [_end(run, observer) for run, observer in zip(runs, observers, strict=True)]


@dataclasses.dataclass
class GroupObserver:
    """Gives each run's observer its lane. A lane whose run has ended computes on, unobserved, so that the program and
    with it the numbers of the other lanes stay the same.
    """

    observers: Sequence[RunObserver]

    def __post_init__(self) -> None:
        self._cut = jax.jit(lane)

    @property
    def has_ended(self) -> bool:
        return all(observer.has_ended for observer in self.observers)

    def begin(self, states: TrainState) -> None:
        for i, observer in self._going():
            observer.begin(self._cut(states, i))

    def before_step(self, step: int) -> None:
        for _, observer in self._going():
            observer.before_step(step)

    def after_step(self, step: int, metrics: list[Metrics]) -> None:
        for i, observer in self._going():
            observer.after_step(step, metrics[i])

    def needs_state(self, step: int) -> bool:
        return any(observer.needs_state(step) for _, observer in self._going())

    def take_state(self, step: int, states: TrainState) -> None:
        for i, observer in self._going():
            if observer.needs_state(step):
                observer.take_state(step, self._cut(states, i))

    def _going(self) -> list[tuple[int, RunObserver]]:
        return [(i, observer) for i, observer in enumerate(self.observers) if not observer.has_ended]


def _end(run: Session, observer: RunObserver) -> Outcome | TrainingDiverged:
    try:
        observer.finish()
    except TrainingDiverged as error:
        return error
    return run.outcome(observer.step)


def _check_alike(configs: Sequence[Config]) -> None:
    first = configs[0]
    if any(_with_luck_of(first, config) != first for config in configs):
        raise UserError("runs that train together may differ in seed and learning rate only")
    if not can_train_together(first):
        raise UserError(
            "runs cannot train together with pmap, with wandb, if a spike sends one of them back, or on a mesh that"
            " divides parameters: train them one after the other"
        )


def can_train_together(config: Config) -> bool:
    """Whether several runs of this kind can share one program."""
    goes_back = isinstance(config.train.spikes, RewindSpikes)
    is_plain = config.train.parallel == "jit" and config.wandb is None and not goes_back
    return is_plain and not divides_parameters(parse_mesh(config.mesh))


def _with_luck_of(first: Config, config: Config) -> Config:
    """`config` with the seeds and the learning rate of `first`."""
    data = dataclasses.replace(config.data, seed=first.data.seed)  # type: ignore[type-var]
    optimizer = dataclasses.replace(config.optimizer, learning_rate=first.optimizer.learning_rate)  # type: ignore[type-var]
    return dataclasses.replace(config, seed=first.seed, data=data, optimizer=optimizer)


def _states_together(runs: Sequence[Session], mesh: Mesh, programs: Programs) -> tuple[TrainState, list[int], int]:
    """The stacked states to begin with, the number of updates of each, and that of the runs that have not diverged."""
    restored = _restore_together(runs, programs.templates(runs[0].config, mesh))
    begun = [run.state(one, mesh, programs) for run, one in zip(runs, restored, strict=True)]
    starts = [start for _, start in begun]
    diverged = [_has_diverged(run.config, one) for run, one in zip(runs, restored, strict=True)]
    start = starts[0] if all(diverged) else starts[diverged.index(False)]
    return replicate(stack([state for state, _ in begun]), mesh), starts, start


def _restore_together(runs: Sequence[Session], templates: Any) -> list[Restored | None]:
    """The checkpoints to resume from: the newest one of each run that has diverged, and for the others those of the
    newest step of which all of them have a good one. None stands for a run that starts anew.
    """
    found = [run.checkpoints.restore_newest(templates, move_damaged=True) for run in runs]
    going = [i for i, one in enumerate(found) if not _has_diverged(runs[i].config, one)]
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


def _has_diverged(config: Config, restored: Restored | None) -> bool:
    return restored is not None and int(restored.trees[REST]["skipped_in_row"]) >= config.train.max_skipped
