"""Trains one run in its folder."""

from __future__ import annotations

from contextlib import ExitStack

from jax.sharding import Mesh
from rich.console import Console

from gpt_jax.config import Config
from gpt_jax.runs.compilation import enable_compilation_cache
from gpt_jax.runs.folder import Workdir
from gpt_jax.runs.goodput import Stopwatch
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.loop import run_steps
from gpt_jax.runs.recompute import Recomputed
from gpt_jax.runs.session import Outcome, Session
from gpt_jax.runs.watchdog import HangWatch
from gpt_jax.training.programs import Programs
from gpt_jax.training.sharding import make_mesh, shard_batch


def train(
    config: Config,
    workdir: Workdir,
    *,
    resume: bool = True,
    restart: bool = False,
    profile: bool = False,
    console: Console | None = None,
    programs: Programs | None = None,
    began: float | None = None,
) -> Outcome:
    """Trains `config` in the folder `workdir`, or resumes the run in that folder.

    A resumed run gives the same losses and parameters, bit for bit, as one that was never interrupted, given the same
    kind and number of devices and the same versions. GPUs need `XLA_FLAGS=--xla_gpu_deterministic_ops=true` for it.

    Args:
      resume: whether a folder that holds a run may be resumed.
      restart: whether to move aside a run that the folder holds, to `aside/`, and to start again from step 0.
      profile: whether to write a profiler trace of a few steps into the folder.
      console: where progress is shown (None: standard output).
      programs: the compiled programs to share with other runs of this process (None: share none).
      began: when, by `time.monotonic`, the time began that the run's goodput accounts for (None: now).

    Raises:
      RunLocked: another process writes to the folder.
      ConfigChanged: the folder's run has another configuration; `record.check_resumable` says what may change.
      Corrupted: with `recompute_every`, a step gave other bits when it was computed again; nothing of it is saved.
      TooManySpikes: the loss spikes again after the run went back `train.spikes.most` times.
      TrainingDiverged: `train.max_skipped` updates in a row were not finite; the good parameters are saved.
      MissingFile: there is no run in `init_from`.
      SaveFailed: a checkpoint cannot be written; those before it are intact.
      UserError: the folder holds a run and `resume` is False, its data has changed, its `config.json` or its
        checkpoints are gone, or all its checkpoints are damaged; the run in `init_from` has another model or tokenizer,
        or has changed since this run began.
    """
    stopwatch = Stopwatch(began)
    enable_compilation_cache()
    programs, mesh = Programs() if programs is None else programs, make_mesh(axes=config.mesh)
    with ExitStack() as held:
        with stopwatch.compilation():
            run = Session.open(config, workdir, resume, held, restart=restart)
        shown = Console(quiet=not run.folder.writes) if console is None else console
        while (outcome := _go_on(run, mesh, programs, shown, profile, stopwatch)) is None:
            stopwatch, profile = Stopwatch(), False
        return outcome


def _go_on(
    run: Session, mesh: Mesh, programs: Programs, shown: Console, profile: bool, stopwatch: Stopwatch
) -> Outcome | None:
    """Trains from the newest checkpoint on; None if a spike of the loss sends the run back to it."""
    with ExitStack() as held:
        held.enter_context(stopwatch.compilation())
        held.enter_context(HangWatch(run.config.watchdog, stopwatch, run.folder))
        state, start = run.newest_state(mesh, programs)
        if start >= run.config.train.steps:
            return run.outcome(start, was_done=True)
        interrupts = held.enter_context(Interrupts([run.folder]))
        observer = held.enter_context(run.observed(start, mesh, interrupts, shown, programs, profile, stopwatch))
        how = run.config.train
        batches = (shard_batch(batch, mesh, how.parallel, how.accumulate) for batch in run.batches(start, mesh))
        step = programs.step(run.config, mesh)
        if run.config.recompute_every is not None:
            step = Recomputed(step, run.config.recompute_every, start)
        run_steps(step, state, batches, start, observer)
        if observer.spike is not None:
            observer.trace.end()
            run.rewind(observer.spike)
            return None
        observer.finish()
        return run.outcome(observer.step)
