"""A whole run in one call: `train` it, `load_run` it, `evaluate_run` it."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console

from gpt_jax.compilation import enable_compilation_cache
from gpt_jax.config import Config
from gpt_jax.conversion import to_dict
from gpt_jax.data import Data, open_data
from gpt_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt_jax.model.gpt import GPT
from gpt_jax.report import make_display, show_banner
from gpt_jax.training import metrics, record
from gpt_jax.training.checkpoint import PARAMS, Checkpoints
from gpt_jax.training.evaluate import make_evaluate
from gpt_jax.training.interrupt import Interrupts
from gpt_jax.training.loop import Loop, Trace
from gpt_jax.training.plot import plot_loss
from gpt_jax.training.programs import Programs
from gpt_jax.training.sharding import make_mesh, place_batch, replicate
from gpt_jax.training.step import TrainState
from gpt_jax.training.storage import EVALUATION, PROFILE, TOKENIZER, RunFolder

Workdir = str | os.PathLike[str]
Status = Literal["finished", "already finished", "interrupted"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How `train` ended, after `step` updates; `validation` is the record of the last evaluation, if there was any."""

    status: Status
    step: int
    validation: dict[str, Any] | None
    checkpoint: str
    loss_plot: str


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
      ValueError: the folder holds a run and not `resume`, its data has changed, or its checkpoints are all damaged.
    """
    enable_compilation_cache()
    metrics.check_wandb(config)
    programs = Programs() if programs is None else programs
    folder = RunFolder(workdir)
    if console is None:
        console = Console(quiet=not folder.writes)
    with folder.lock():
        earlier = record.recorded(folder) if record.has_progress(folder) else None
        if earlier is not None:
            record.check_resumable(folder, earlier[0], config, resume)
        data = open_data(config.data, config.model.context_length, config.data_seed)
        resolved = (
            record.resolve(config, data) if earlier is None else record.lengthened(earlier[1], config.train.steps)
        )
        mesh = make_mesh()
        with Checkpoints(folder, resolved.checkpoint.keep) as checkpoints:
            state, start = _state(resolved, checkpoints, mesh, programs)
            if start >= resolved.train.steps:
                return _outcome("already finished", folder, start, checkpoints)
            environment = record.record_start(folder, data, start)
            record.write_config(folder, config, resolved)
            if folder.writes:
                data.tokenizer.save(folder.file(TOKENIZER))
            show_banner(console, folder, resolved, data, environment, start)
            step = _run_loop(
                folder, resolved, data, mesh, state, start, checkpoints, console, environment, profile, programs
            )
            checkpoints.wait()
            return _outcome("finished" if step == resolved.train.steps else "interrupted", folder, step, checkpoints)


def _state(config: Config, checkpoints: Checkpoints, mesh: Mesh, programs: Programs) -> tuple[TrainState, int]:
    """The state to begin with, on every device, and the number of its updates."""
    restored = checkpoints.restore_newest(programs.templates(config, mesh), move_damaged=True)
    if restored is None:
        return replicate(programs.init(config), mesh), 0
    return replicate(record.from_trees(config, restored.trees), mesh), restored.step


def _run_loop(
    folder: RunFolder,
    config: Config,
    data: Data,
    mesh: Mesh,
    state: TrainState,
    start: int,
    checkpoints: Checkpoints,
    console: Console,
    environment: Mapping[str, Any],
    profile: bool,
    programs: Programs,
) -> int:
    """Wires the loop up and runs it; returns the number of updates at its end."""
    parallel = config.train.parallel
    records = metrics.Metrics(folder, start, _sinks(folder, config, start, environment))
    display = make_display(console, config, data)
    batches = data.batches(start, config.train.steps, config.train.batch_size, jax.process_index(), jax.process_count())
    with Interrupts() as interrupts:
        loop = Loop(
            config=config,
            step=programs.step(config, mesh),
            place=lambda batch: place_batch(batch, mesh, parallel, config.train.accumulate),
            evaluate=make_evaluate(
                GPT(config.model), data, config.evaluation.batch_size, mesh, programs.sums_by_row(config, mesh)
            ),
            checkpoints=checkpoints,
            records=records,
            display=display,
            interrupts=interrupts,
            trace=Trace(str(folder.make(PROFILE)) if profile else None),
        )
        try:
            display.start(start)
            return loop.run(state, batches, start)[1]
        finally:
            display.stop()
            records.close()


def _sinks(folder: RunFolder, config: Config, start: int, environment: Mapping[str, Any]) -> list[metrics.Sink]:
    if not folder.writes:
        return []
    sinks: list[metrics.Sink] = []
    try:
        sinks.append(metrics.TensorBoard(folder, start))
    except ImportError as error:  # tensorboardX needs another package for an object store
        warnings.warn(f"no TensorBoard events are written: {error}", stacklevel=2)
    if config.wandb is not None:
        sinks.append(metrics.WeightsAndBiases(folder, config.wandb, environment["id"], to_dict(config)))
    return sinks


def _outcome(status: Status, folder: RunFolder, step: int, checkpoints: Checkpoints) -> Outcome:
    validations = metrics.read(folder, "validation")
    return Outcome(
        status=status,
        step=step,
        validation=validations[-1] if validations else None,
        checkpoint=checkpoints.path(step),
        loss_plot=plot_loss(folder),
    )


# ── opening a run ────────────────────────────────────────────────────────────────────────────────────────────────────


class OpenedRun(NamedTuple):
    """A run's folder, its resolved configuration, and the model of a checkpoint with the step it is from."""

    folder: RunFolder
    config: Config
    model: GPT
    params: Any
    step: int


def open_run(workdir: Workdir, step: int | None = None) -> OpenedRun:
    """As `load_run`, with all that the folder knows."""
    enable_compilation_cache()
    folder = RunFolder(workdir)
    found = record.recorded(folder)
    if found is None:
        what = "there is no run in" if folder.exists() else "there is no folder"
        raise FileNotFoundError(f"{what} {folder}: give the --workdir of a run")
    config = found[1]
    # Scanning is a choice of execution; per layer, names are canonical and decoding is faster.
    model = GPT(dataclasses.replace(config.model, scan=False))
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    template = {
        PARAMS: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
    }
    with Checkpoints(folder, read_only=True) as checkpoints:
        restored = checkpoints.restore_newest(template) if step is None else checkpoints.restore(step, template)
    if restored is None:
        raise FileNotFoundError(f"the run in {folder} has no checkpoint yet: wait for its first one")
    return OpenedRun(folder, config, model, restored.trees[PARAMS], restored.step)


def load_run(workdir: Workdir, step: int | None = None) -> tuple[GPT, Any, Tokenizer]:
    """Model, parameters and tokenizer of a run, from its newest good checkpoint or from the one of `step`.

    Parameters have their per-layer names, and `model.config.scan` is False, whichever way the run was executed.

    Raises:
      FileNotFoundError: there is no run, or it has no checkpoint yet.
      ValueError: there is no checkpoint of `step`, or none that is undamaged.
    """
    opened = open_run(workdir, step)
    return opened.model, opened.params, load_tokenizer(opened.folder.file(TOKENIZER))


def evaluate_run(workdir: Workdir, step: int | None = None) -> tuple[int, dict[str, float | int]]:
    """Evaluates a checkpoint on the run's whole validation set, writes `evaluation.json`, and returns (step, metrics).

    Raises:
      FileNotFoundError, ValueError: as `load_run`; or the data is not what the run was trained on.
    """
    opened = open_run(workdir, step)
    data = open_data(opened.config.data, opened.config.model.context_length, opened.config.data_seed)
    record.check_data(opened.folder, data)
    mesh = make_mesh()
    result = make_evaluate(opened.model, data, opened.config.evaluation.batch_size, mesh)(
        replicate(opened.params, mesh)
    )
    finite = {name: value if math.isfinite(value) else None for name, value in result.items()}
    opened.folder.write_json(EVALUATION, {"step": opened.step, **finite})
    return opened.step, result
