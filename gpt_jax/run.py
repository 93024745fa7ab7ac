"""A whole run in one call: `train` it, `load_run` it, `evaluate_run` it."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import jax
from jax.sharding import Mesh
from rich.console import Console

from gpt_jax.compilation import enable_compilation_cache
from gpt_jax.config import Config, Text, TokenizerFile, has_adapter
from gpt_jax.conversion import to_dict
from gpt_jax.data import Data, open_data
from gpt_jax.model.gpt import GPT
from gpt_jax.opening import Base, OpenedRun, Workdir, load_run, open_base, open_run, reopen_base
from gpt_jax.report import make_display, show_banner
from gpt_jax.starting import changed_settings, check_base, with_vocabulary
from gpt_jax.training import metrics, record
from gpt_jax.training.checkpoint import Checkpoints
from gpt_jax.training.evaluate import make_evaluate
from gpt_jax.training.interrupt import Interrupts
from gpt_jax.training.loop import Loop, Trace
from gpt_jax.training.plot import plot_loss
from gpt_jax.training.programs import Programs
from gpt_jax.training.sharding import make_mesh, place_batch, replicate
from gpt_jax.training.step import TrainState
from gpt_jax.training.storage import EVALUATION, PROFILE, TOKENIZER, RunFolder

__all__ = ["Outcome", "OpenedRun", "Workdir", "evaluate_run", "load_run", "open_run", "train"]

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
      FileNotFoundError: there is no run in `init_from`.
      ValueError: the folder holds a run and not `resume`, its data has changed, or its checkpoints are all damaged; the
        run in `init_from` has another model or tokenizer, or has changed since.
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
        resolved, base = _begun(folder, config, data) if earlier is None else (earlier[1], None)
        resolved = record.lengthened(resolved, config.train.steps)
        mesh = make_mesh()
        with Checkpoints(folder, resolved.checkpoint.keep) as checkpoints:
            state, start = _state(folder, resolved, checkpoints, mesh, programs, base)
            if start >= resolved.train.steps:
                return _outcome("already finished", folder, start, checkpoints)
            environment = record.record_start(folder, data, start, None if base is None else base.record)
            record.write_config(folder, config, resolved)
            if folder.writes:
                data.tokenizer.save(folder.file(TOKENIZER))
            show_banner(console, folder, resolved, data, environment, start)
            step = _run_loop(
                folder, resolved, data, mesh, state, start, checkpoints, console, environment, profile, programs
            )
            checkpoints.wait()
            return _outcome("finished" if step == resolved.train.steps else "interrupted", folder, step, checkpoints)


def _begun(folder: RunFolder, config: Config, data: Data) -> tuple[Config, Base | None]:
    """A new run's resolved configuration, and what it begins with."""
    if config.init_from is None:
        return record.resolve(config, data), None
    base = open_base(config.init_from, config, folder)
    resolved = record.resolve(with_vocabulary(config, base), data)
    check_base(base, resolved.model, data)
    return resolved, base._replace(record=base.record | {"changed": changed_settings(base, resolved.model)})


def _state(
    folder: RunFolder, config: Config, checkpoints: Checkpoints, mesh: Mesh, programs: Programs, base: Base | None
) -> tuple[TrainState, int]:
    """The state to begin with, on every device, and the number of its updates."""
    restored = checkpoints.restore_newest(programs.templates(config, mesh), move_damaged=True)
    if base is None and config.init_from is not None and (restored is None or has_adapter(config.model)):
        base = reopen_base(folder, config)
    params = None if base is None else base.params
    if restored is None:
        return replicate(programs.init(config, params), mesh), 0
    return replicate(record.from_trees(config, restored.trees, params), mesh), restored.step


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
