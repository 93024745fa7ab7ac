"""A whole run in one call: `train` it, `load_run` it, `evaluate_run` it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from rich.console import Console

from gpt_jax.config import Config
from gpt_jax.runs.compilation import enable_compilation_cache
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.load import Workdir
from gpt_jax.runs.session import Outcome, Session
from gpt_jax.training.programs import Programs
from gpt_jax.training.sharding import make_mesh, shard_batch


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
            return step(state, shard_batch(rows, mesh, how.parallel, how.accumulate))

        return run.outcome(loop.run(place_and_step, state, run.batches(start), start)[1])
