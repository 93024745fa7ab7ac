"""Trains one run in its folder."""

from __future__ import annotations

from contextlib import ExitStack

from rich.console import Console

from gpt_jax.config import Config
from gpt_jax.runs.compilation import enable_compilation_cache
from gpt_jax.runs.folder import Workdir
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.loop import run_steps
from gpt_jax.runs.session import Outcome, Session
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

    Raises:
      RunLocked: another process writes to the folder.
      ConfigChanged: the folder's run has another configuration; only `train.steps` may grow.
      TrainingDiverged: `train.max_skipped` updates in a row were not finite; the good parameters are saved.
      MissingFile: there is no run in `init_from`.
      SaveFailed: a checkpoint cannot be written; those before it are intact.
      UserError: the folder holds a run and `resume` is False, its data has changed, its `config.json` or its
        checkpoints are gone, or all its checkpoints are damaged; the run in `init_from` has another model or tokenizer,
        or has changed since this run began.
    """
    enable_compilation_cache()
    programs, mesh = Programs() if programs is None else programs, make_mesh(axes=config.mesh)
    with ExitStack() as held:
        run = Session.open(config, workdir, resume, held, restart=restart)
        state, start = run.newest_state(mesh, programs)
        if start >= run.config.train.steps:
            return run.outcome(start, was_done=True)
        interrupts = held.enter_context(Interrupts([run.folder]))
        shown = Console(quiet=not run.folder.writes) if console is None else console
        observer = held.enter_context(run.observed(start, mesh, interrupts, shown, programs, profile))
        how = run.config.train
        batches = (shard_batch(batch, mesh, how.parallel, how.accumulate) for batch in run.batches(start, mesh))
        run_steps(programs.step(run.config, mesh), state, batches, start, observer)
        observer.finish()
        return run.outcome(observer.step)
