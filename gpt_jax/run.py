"""A whole run in one call: `train` it, `load_run` it, `evaluate_run` it."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from jax.sharding import Mesh
from rich.console import Console

from gpt_jax.compilation import enable_compilation_cache
from gpt_jax.config import Config, Text, TokenizerFile
from gpt_jax.data import open_data
from gpt_jax.opening import OpenedRun, Workdir, load_run, open_run
from gpt_jax.session import Outcome, Session
from gpt_jax.training import record
from gpt_jax.training.checkpoint import REST, CheckpointError, Restored
from gpt_jax.training.evaluate import make_evaluate
from gpt_jax.training.interrupt import Interrupts
from gpt_jax.training.loop import TrainingDiverged
from gpt_jax.training.programs import Programs
from gpt_jax.training.sharding import make_mesh, place_batch, replicate
from gpt_jax.training.step import TrainState, given_by
from gpt_jax.training.storage import EVALUATION, TOKENIZER
from gpt_jax.training.together import run_together, stack, stack_rows

__all__ = ["Outcome", "OpenedRun", "Workdir", "evaluate_run", "load_run", "open_run", "train", "train_together"]


def train(
    config: Config,
    workdir: Workdir,
    *,
    resume: bool = True,
    profile: bool = False,
    console: Console | None = None,
    programs: Programs | None = None,
) -> Outcome:
    """Trains `config` in the folder `workdir`, or goes on with the run that it holds.

    A run that a signal or a crash interrupted, started again, gives the same losses and parameters, bit for bit, as one
    that was not: on the same kind of hardware, versions and number of devices; GPUs need
    `XLA_FLAGS=--xla_gpu_deterministic_ops=true` for it. `profile` writes a trace of a few steps into the folder.
    Runs of one process that are given the same `programs` share what they compile.

    Raises:
      RunLocked: another process writes to the folder.
      ConfigChanged: the folder's run has another configuration (`train.steps` alone may grow).
      TrainingDiverged: after `train.max_skipped` updates in a row that were not finite; the good parameters are saved.
      FileNotFoundError: there is no run in `init_from`.
      ValueError: the folder holds a run and not `resume`, its data has changed, or its checkpoints are all damaged; the
        run in `init_from` has another model or tokenizer, or has changed since.
    """
    enable_compilation_cache()
    programs, mesh = Programs() if programs is None else programs, make_mesh()
    with ExitStack() as held:
        run = Session.open(config, workdir, resume, held)
        state, start = run.newest_state(mesh, programs)
        if start >= run.config.train.steps:
            return run.outcome(start, was_done=True)
        interrupts = held.enter_context(Interrupts())
        shown = Console(quiet=not run.folder.writes) if console is None else console
        loop = held.enter_context(run.loop(start, mesh, interrupts, shown, programs, profile))
        step, how = programs.step(run.config, mesh), run.config.train

        def place_and_step(state: Any, rows: Any) -> Any:
            return step(state, place_batch(rows, mesh, how.parallel, how.accumulate))

        return run.outcome(loop.run(place_and_step, state, run.batches(start), start)[1])


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
            raise ValueError("runs that train together may differ in seed and learning rate only")
        if first.train.parallel != "jit" or first.wandb is not None:
            raise ValueError("runs can't train together by pmap, nor with wandb: take them one after the other")
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
            return step(states, place_batch(stack_rows(rows), mesh, "vmap", first.train.accumulate), given)

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


def evaluate_run(
    workdir: Workdir, step: int | None = None, text: str | None = None, context_length: int | None = None
) -> tuple[int, dict[str, float | int]]:
    """Evaluates a checkpoint on the run's whole validation set, writes `evaluation.json`, and returns (step, metrics).

    `text` is a path to evaluate on in place of the run's own data, on the part that training would hold out;
    `context_length` is the length of a row, in place of the model's.

    Raises:
      FileNotFoundError, ValueError: as `load_run`; or the data is not what the run was trained on.
    """
    opened = open_run(workdir, step)
    source, length = opened.config.data, opened.config.model.context_length
    tokenizer = TokenizerFile(str(opened.folder.file(TOKENIZER)))  # the run's own copy, wherever the folder is now
    if text is not None:
        source = Text(path=text, tokenizer=tokenizer)
    elif isinstance(source, Text) and isinstance(source.tokenizer, TokenizerFile):
        source = dataclasses.replace(source, tokenizer=tokenizer)
    data = open_data(source, length if context_length is None else context_length, opened.config.data_seed)
    if text is None:
        record.check_data(opened.folder, data)
    mesh = make_mesh()
    result = make_evaluate(opened.model, data, opened.config.evaluation.batch_size, mesh)(
        replicate(opened.params, mesh)
    )
    finite = {name: value if math.isfinite(value) else None for name, value in result.items()}
    opened.folder.write_json(EVALUATION, {"step": opened.step, **finite})
    return opened.step, result
