"""A run that this process holds: its locked folder, its data, its state and the observer of its loop."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from jax.sharding import Mesh
from rich.console import Console

from gpt_jax.config import Config, RewindSpikes, has_adapter
from gpt_jax.config.conversion import config_hash, to_dict
from gpt_jax.data import Batch, Data, open_data
from gpt_jax.model.gpt import GPT
from gpt_jax.runs import consensus, metrics, record
from gpt_jax.runs.checkpoint import Checkpoints, Restored
from gpt_jax.runs.console import make_display, show_banner
from gpt_jax.runs.diagnostics import watch_heads
from gpt_jax.runs.folder import PROFILE, TOKENIZER, RunFolder, Workdir
from gpt_jax.runs.goodput import GOODPUT, Goodput, Stopwatch
from gpt_jax.runs.init_from import changed_settings, check_base, with_vocabulary
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.load import Base, open_base, reopen_base
from gpt_jax.runs.longer import check_schedule, go_back
from gpt_jax.runs.loop import RunObserver
from gpt_jax.runs.plot import plot_loss
from gpt_jax.runs.profile import Trace
from gpt_jax.runs.questions import watch_suites
from gpt_jax.runs.restart import check_whole, move_aside
from gpt_jax.runs.rewind import LeftOut, check_count, read_left_out, write_left_out
from gpt_jax.runs.spikes import SpikeWatch
from gpt_jax.training.evaluate import make_evaluate
from gpt_jax.training.programs import Programs
from gpt_jax.training.resolve import lengthened, resolve
from gpt_jax.training.schedule import stable_steps
from gpt_jax.training.sharding import row_share, spread
from gpt_jax.training.state import TrainState, from_trees

Status = Literal["finished", "already finished", "interrupted"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How `train` ended, after `step` updates. `validation` is the record of the last evaluation; None without one.

    `checkpoint` and `loss_plot` are paths.
    """

    status: Status
    step: int
    validation: dict[str, Any] | None
    checkpoint: str
    loss_plot: str


@dataclasses.dataclass
class Session:
    """A run whose folder this process has locked.

    `given` is the configuration as the user gave it, `config` the resolved one. `base` is what a new run begins with;
    its parameters are dropped once they are part of the state.
    """

    folder: RunFolder
    given: Config
    config: Config
    data: Data
    checkpoints: Checkpoints
    base: Base | None
    left_out: LeftOut

    @classmethod
    def open(
        cls, config: Config, workdir: Workdir, resume: bool, stack: ExitStack, keep: int = 1, restart: bool = False
    ) -> Session:
        """Opens a run until `stack` is closed. It keeps at least `keep` checkpoints. Raises as `gpt_jax.train`."""
        metrics.check_wandb(config)
        folder = RunFolder(workdir)
        stack.enter_context(folder.lock())
        folder.check_shared()
        if restart:
            move_aside(folder)
        has_begun = record.has_progress(folder)
        earlier = record.recorded(folder) if has_begun else None
        if has_begun:
            check_whole(folder, None if earlier is None else earlier[1])
        if earlier is not None:
            record.check_resumable(folder, earlier[0], config, resume)
        data = open_data(config.data, config.model.context_length, config.data_seed)
        consensus.check_same(configuration=config_hash(config), text_or_tokenizer=repr(record.hashes(data)))
        resolved, base = _resolved(folder, config, data) if earlier is None else (earlier[1], None)
        old, changed = resolved, earlier is not None and earlier[0].schedule != config.schedule
        resolved = lengthened(resolved, config.train.steps, config.schedule if changed else None)
        todays = {name: getattr(config, name) for name in ("mesh", *record.WATCHING)}
        resolved = dataclasses.replace(resolved, **todays)
        if earlier is not None:
            check_schedule(folder, old, resolved)
        keep = max(keep, resolved.checkpoint.keep)
        checkpoints = stack.enter_context(Checkpoints(folder, keep, before=stable_steps(resolved.schedule)))
        go_back(folder, old, resolved, checkpoints)
        return cls(folder, config, resolved, data, checkpoints, base, read_left_out(folder))

    def newest_state(self, mesh: Mesh, programs: Programs) -> tuple[TrainState, int]:
        """The state of the newest good checkpoint or, without one, the initial state; and its number of updates."""
        newest = self.checkpoints.restore_newest(programs.templates(self.config, mesh), move_damaged=True)
        return self.state(newest, mesh, programs)

    def state(self, restored: Restored | None, mesh: Mesh, programs: Programs) -> tuple[TrainState, int]:
        """As `newest_state`, for a restored checkpoint or, if None, for a new run."""
        base = self.base
        if base is not None:
            self.base = base._replace(params=None)
        if base is None and self.config.init_from is not None and (restored is None or has_adapter(self.config.model)):
            base = reopen_base(self.folder, self.config)
        params = None if base is None else base.params
        if restored is None:
            return programs.init(self.config, mesh, params), 0
        state = from_trees(self.config, restored.trees, params)
        return spread(state, programs.placement(self.config, mesh)), restored.step

    def batches(self, start: int, mesh: Mesh) -> Iterator[Batch]:
        """This process's rows of the batches after `start` updates."""
        train = self.config.train
        return self.data.batches(start, train.steps, train.batch_size, *row_share(mesh), self.left_out.batch)

    def rewind(self, spike: Mapping[str, Any]) -> None:
        """Leaves out the batches from the newest checkpoint up to that of a spike, from the next `newest_state` on.

        Raises:
          TooManySpikes: the run has gone back `train.spikes.most` times.
        """
        assert isinstance(self.config.train.spikes, RewindSpikes)
        check_count(self.left_out, self.config.train.spikes.most, spike)
        self.checkpoints.wait()
        self.left_out = self.left_out.added(spike, max(self.checkpoints.steps(), default=0))
        write_left_out(self.folder, self.left_out)

    @contextmanager
    def observed(
        self,
        start: int,
        mesh: Mesh,
        interrupts: Interrupts,
        console: Console,
        programs: Programs,
        profile: bool,
        stopwatch: Stopwatch,
    ) -> Iterator[RunObserver]:
        """Records a start after `start` updates, prints the banner, and yields the observer for the loop."""
        folder, config, data = self.folder, self.config, self.data
        watches = [*watch_heads(config, data, mesh), *watch_suites(config, data, mesh)]  # or refuses before all else
        environment = record.record_start(folder, data, start, None if self.base is None else self.base.record)
        record.write_config(folder, self.given, config)
        if folder.writes:
            data.tokenizer.save(folder.file(TOKENIZER))
        goodput = Goodput(stopwatch, metrics.read(folder, GOODPUT), start)
        show_banner(console, folder, config, data, environment, start, goodput)
        before = [] if config.train.spikes is None else metrics.read(folder, "train")
        records = metrics.Metrics(folder, start, _sinks(folder, config, start, environment))
        display = make_display(console, config, data)
        rows, sums = config.evaluation.batch_size, programs.sums_by_row(config, mesh)
        try:
            display.start(start)
            yield RunObserver(
                config=config,
                step=start,
                evaluate=make_evaluate(GPT(config.model), data, rows, mesh, sums),
                watches=watches,
                checkpoints=self.checkpoints,
                records=records,
                display=display,
                interrupts=interrupts,
                trace=Trace(str(folder.make(PROFILE)) if profile and folder.writes else None),
                goodput=goodput,
                spikes=SpikeWatch(config.train, data, [r for r in before if r["step"] <= start], self.left_out.batch),
            )
        finally:
            display.stop()
            records.close()

    def outcome(self, step: int, was_done: bool = False) -> Outcome:
        """The outcome after `step` updates. Waits until everything is on disk."""
        self.checkpoints.wait()
        validations = metrics.read(self.folder, "validation")
        is_finished = step >= self.config.train.steps
        return Outcome(
            status="already finished" if was_done else "finished" if is_finished else "interrupted",
            step=step,
            validation=validations[-1] if validations else None,
            checkpoint=self.checkpoints.path(step),
            loss_plot=plot_loss(self.folder),
        )


def _resolved(folder: RunFolder, config: Config, data: Data) -> tuple[Config, Base | None]:
    """The resolved configuration of a new run, and what it begins with."""
    if config.init_from is None:
        return resolve(config, data), None
    base = open_base(config.init_from, config, folder)
    resolved = resolve(with_vocabulary(config, base), data)
    check_base(base, resolved.model, data)
    return resolved, base._replace(record=base.record | {"changed": changed_settings(base, resolved.model)})


def _sinks(folder: RunFolder, config: Config, start: int, environment: Mapping[str, Any]) -> list[metrics.Sink]:
    if not folder.writes:
        return []
    sinks: list[metrics.Sink] = []
    try:
        sinks.append(metrics.TensorBoard(folder, start))
    except ImportError as error:  # tensorboardX needs a further package for an object store
        warnings.warn(f"no TensorBoard events are written: {error}", stacklevel=2)
    if config.wandb is not None:
        sinks.append(metrics.WeightsAndBiases(folder, config.wandb, environment["id"], to_dict(config)))
    return sinks
