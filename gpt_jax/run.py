"""A whole run in one call: `train` it, `load_run` it, `evaluate_run` it."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import Console

from gpt_jax.compilation import enable_compilation_cache
from gpt_jax.config import Config, Text, TokenizerFile
from gpt_jax.data import open_data
from gpt_jax.opening import OpenedRun, Workdir, load_run, open_run
from gpt_jax.session import Outcome, Session
from gpt_jax.training import record
from gpt_jax.training.checkpoint import CheckpointError, Restored
from gpt_jax.training.evaluate import make_evaluate
from gpt_jax.training.interrupt import Interrupts
from gpt_jax.training.loop import TrainingDiverged
from gpt_jax.training.programs import Programs
from gpt_jax.training.sharding import make_mesh, place_batch, replicate
from gpt_jax.training.step import given_by
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
        newest = run.checkpoints.restore_newest(programs.templates(run.config, mesh), move_damaged=True)
        state, start = run.state(newest, mesh, programs)
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
    step of which each run has a good checkpoint, and gives the same, bit for bit, as one that was not interrupted. It
    is faster than one run after the other where one leaves the device idle, and needs as many times the memory.

    Raises:
      ValueError: as `train`; configurations that differ otherwise, or ask for pmap.
    """
    enable_compilation_cache()
    programs, mesh = Programs() if programs is None else programs, make_mesh()
    with ExitStack() as held:
        runs = [Session.open(c, workdir, True, held) for c, workdir in zip(configs, workdirs, strict=True)]
        first = runs[0].config
        if any(_with_luck_of(first, run.config) != first for run in runs) or first.train.parallel != "jit":
            raise ValueError("runs that train together may differ in seed and learning rate only, and not use pmap")
        restored = _restore_together(runs, programs.templates(first, mesh))
        begun = [run.state(one, mesh, programs) for run, one in zip(runs, restored, strict=True)]
        start = begun[0][1]
        if start >= first.train.steps:
            return [run.outcome(start, was_done=True) for run in runs]
        interrupts, quiet = held.enter_context(Interrupts()), Console(quiet=True)
        loops = [held.enter_context(run.loop(start, mesh, interrupts, quiet, programs, False)) for run in runs]
        states = replicate(stack([state for state, _ in begun]), mesh)
        given = replicate(stack([given_by(run.config) for run in runs]), mesh)
        step = programs.step_together(first, mesh)

        def place_and_step(states: Any, rows: Any) -> Any:
            return step(states, place_batch(stack_rows(rows), mesh, "vmap", first.train.accumulate), given)

        ends = run_together(loops, place_and_step, states, [run.batches(start) for run in runs], start)
        return [run.outcome(end) if isinstance(end, int) else end for run, end in zip(runs, ends, strict=True)]


def _with_luck_of(first: Config, config: Config) -> Config:
    """`config` with the seeds and the learning rate of `first`."""
    data = dataclasses.replace(config.data, seed=first.data.seed)  # type: ignore[type-var]
    optimizer = dataclasses.replace(config.optimizer, learning_rate=first.optimizer.learning_rate)  # type: ignore[type-var]
    return dataclasses.replace(config, seed=first.seed, data=data, optimizer=optimizer)


def _restore_together(runs: Sequence[Session], templates: Any) -> list[Restored] | list[None]:
    """The newest step of which all runs have a good checkpoint; Nones where there is none."""
    for step in sorted(set.intersection(*(set(run.checkpoints.steps()) for run in runs)), reverse=True):
        found = []
        for run in runs:
            try:
                found.append(run.checkpoints.restore(step, templates))
            except CheckpointError as error:
                warnings.warn(f"{error}; going back to the checkpoint before it", stacklevel=2)
                run.checkpoints.move_damaged([step])
                break
        else:
            return found
    return [None] * len(runs)


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
