"""The training loop, and the observer that records, shows, evaluates, saves and stops a run.

The loop calls the pure step and hands what it returns to an observer. One run has a `RunObserver`; several runs in one
program have a `GroupObserver` (`runs/together.py`) around one `RunObserver` each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax

from gpt_jax.config import Config
from gpt_jax.config.errors import UserError
from gpt_jax.data import Batch
from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.display import Display
from gpt_jax.runs.goodput import CHECKPOINT, DATA, EVALUATION, STEPS, Goodput, describe
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.metrics import Metrics
from gpt_jax.runs.profile import Trace
from gpt_jax.runs.spikes import SpikeWatch, sentence
from gpt_jax.training.evaluate import Evaluate
from gpt_jax.training.state import PARAMS, REST, TrainState, to_trees

StepFn = Callable[[TrainState, Batch], tuple[TrainState, Any]]


@runtime_checkable
class Observer(Protocol):
    """What the loop calls around each step. Steps are numbered from 1; step s ends with s updates done."""

    @property
    def has_ended(self) -> bool:
        """Whether to take no further step."""

    def begin(self, state: TrainState) -> None:
        """Before the first step."""

    def before_step(self, step: int) -> None:
        """Before a step is dispatched."""

    def after_step(self, step: int, metrics: Any) -> None:
        """After a step was dispatched. Fetching these metrics now would make the devices wait."""

    def needs_state(self, step: int) -> bool:
        """Whether `take_state` is to be called after this step."""

    def take_state(self, step: int, state: TrainState) -> None:
        """The state after this step. The next step overwrites its memory, so keep no reference to it."""


def run_steps(
    step_fn: StepFn, state: TrainState, batches: Iterable[Batch], start: int, observer: Observer
) -> TrainState:
    """Trains from `start` updates on until `batches` or the observer ends; returns the last state. Donates `state`."""
    observer.begin(state)
    for step, batch in enumerate(batches, start + 1):
        if observer.has_ended:
            break
        observer.before_step(step)
        state, metrics = step_fn(state, batch)
        observer.after_step(step, metrics)
        if observer.needs_state(step):
            observer.take_state(step, state)
    return state


class TrainingDiverged(UserError):
    """Too many updates in a row were skipped: the loss or gradient was not finite, or the loss spiked."""


@dataclass(frozen=True)
class Watch:
    """What a run measures of its model beside the validation loss, every `every` steps and after the last one. Its
    records have the split `split`, the settings `settings` and what `measure(params)` returns; `name` is for messages.
    """

    split: str
    name: str
    every: int
    settings: Mapping[str, int]
    measure: Callable[[Any], dict[str, float]]


@dataclass
class RunObserver:
    """Observes the loop of one run, which begins after `step` updates.

    Step s is recorded with the loss before its update; an evaluation at step s is of the parameters after it. Metrics
    of a step are fetched after the next one is dispatched, so the devices never wait for the host.
    """

    config: Config
    step: int  # updates done
    evaluate: Evaluate
    watches: Sequence[Watch]
    checkpoints: Checkpoints
    records: Metrics
    display: Display
    interrupts: Interrupts
    trace: Trace
    goodput: Goodput
    spikes: SpikeWatch
    has_ended: bool = field(default=False, init=False)
    spike: dict[str, Any] | None = field(default=None, init=False)  # the record of one that sends the run back
    _pending: dict[str, jax.Array] | None = field(default=None, init=False)  # metrics of `step`, not fetched yet
    _skipped_in_row: int = field(default=0, init=False)
    _is_stopping: bool = field(default=False, init=False)
    _clock: float | None = field(default=None, init=False)  # when the last metrics came; None after a pause

    def begin(self, state: TrainState) -> None:
        """Resumes: makes up for an evaluation that an interrupt prevented. A run that diverged ends at once."""
        self._switch(DATA)
        if self.step == 0:
            return
        self._record_goodput()
        self._skipped_in_row = int(state.skipped_in_row)
        self.spikes.begin(int(state.skipped))
        self.has_ended = self._has_diverged() or self._is_last()
        if not self._has_diverged() and self._evaluation_due() and not self.records.had(self.step, "validation"):
            self.checkpoints.evaluated(self.step, self._evaluate(state))
        if not self._has_diverged():
            self._measure(state, [watch for watch in self._due() if not self.records.had(self.step, watch.split)])

    def before_step(self, step: int) -> None:
        self.interrupts.doing = f"step {step}"
        self._switch(STEPS)
        self.trace.before_step()

    def after_step(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Reports the step before this one, and asks whether to stop."""
        self._switch(STEPS)  # in a group, another run has left it
        self._report()
        self.step, self._pending = step, metrics
        self._is_stopping = self.interrupts.requested(step) or self._has_diverged()
        self.interrupts.doing = f"the batch of step {step + 1}"
        self.goodput.stopwatch.end_step(step)
        self._switch(DATA)
        if self.goodput.is_due():
            self._record_goodput()

    def needs_state(self, step: int) -> bool:
        return self.spike is None and (self._evaluates() or bool(self._measures()) or self._saves())

    def take_state(self, step: int, state: TrainState) -> None:
        """Evaluates, measures and saves, as this step requires. A checkpoint is never ahead of the records."""
        self._switch(STEPS)
        self._report()
        if self.spike is not None:
            return
        loss = self._evaluate(state) if self._evaluates() else None
        self._measure(state, self._measures())
        if self._saves():
            self._save(state, loss)
        self._switch(DATA)
        self.has_ended = self._is_stopping or self._is_last()
        if not self.has_ended:
            self.interrupts.doing = f"the batch of step {step + 1}"

    def finish(self) -> None:
        """To be called after the loop.

        Raises:
          TrainingDiverged: `train.max_skipped` updates in a row were skipped. The state is saved.
        """
        self.trace.end()
        self._switch(CHECKPOINT)
        self.checkpoints.wait()
        self.display.print(describe(self._record_goodput()))
        if self._has_diverged():
            what = "" if self.config.train.spikes is None else ", or spiked,"
            raise TrainingDiverged(
                f"the loss or gradient was not finite{what} in {self._skipped_in_row} steps in a row, up to step"
                f" {self.step}: the parameters of the last good step are in {self.checkpoints.path(self.step)}; lower"
                " optimizer.learning_rate or set train.clip_norm, in another folder"
            )

    def _is_last(self) -> bool:
        return self.step == self.config.train.steps

    def _has_diverged(self) -> bool:
        return self._skipped_in_row >= self.config.train.max_skipped

    def _evaluation_due(self) -> bool:
        return self.step % self.config.evaluation.every == 0

    def _evaluates(self) -> bool:
        """An interrupted run puts its evaluation off to the next start, so that the process ends soon."""
        return self._is_last() or (self._evaluation_due() and not self._is_stopping)

    def _due(self) -> list[Watch]:
        return [watch for watch in self.watches if self.step % watch.every == 0 or self._is_last()]

    def _measures(self) -> list[Watch]:
        """An interrupted run puts them off too."""
        return self._due() if self._is_last() or not self._is_stopping else []

    def _saves(self) -> bool:
        return self._is_last() or self._is_stopping or self.step % self.config.checkpoint.every == 0

    def _report(self) -> None:
        """Fetches the pending metrics, records and shows them."""
        if self._pending is None:
            return
        values = {name: value.item() for name, value in jax.device_get(self._pending).items()}
        self._pending = None
        now = time.perf_counter()
        self._skipped_in_row = values.pop("skipped_in_row")
        seconds = 0.0 if self._clock is None else now - self._clock
        rate = values["tokens"] / seconds if seconds > 0 else None  # a coarse clock may stand still
        self._clock = now
        loss = values["loss"]
        if (wrong := self.spikes.look(self.step, values)) is not None:
            self.records.write(wrong)
            self.display.print(sentence(wrong))
            if self.spikes.asks_to_rewind(values):
                self.spike, self.has_ended = wrong, True
        if self.step % self.config.train.log_every == 0 or self._is_last():
            # The loss comes first in the line, for those who read it by eye.
            self.records.write({"step": self.step, "split": "train", "loss": loss, **values, "tokens_per_second": rate})
        self.display.update(self.step, loss)

    def _switch(self, phase: str) -> None:
        self.goodput.stopwatch.switch(phase)

    def _record_goodput(self) -> dict[str, Any]:
        record = self.goodput.record(self.step)
        self.records.write(record)
        return record

    def _evaluate(self, state: TrainState) -> float:
        self.interrupts.doing = f"the evaluation after step {self.step}"
        self._switch(EVALUATION)
        result = self.evaluate(state.model_params)
        self.records.write({"step": self.step, "split": "validation", **result})
        self.display.evaluated(self.step, result)
        self._pause()
        return float(result["loss"])

    def _measure(self, state: TrainState, watches: Sequence[Watch]) -> None:
        for watch in watches:
            self.interrupts.doing = f"the {watch.name} after step {self.step}"
            self._switch(EVALUATION)
            found = watch.measure(state.model_params)
            self.records.write({"step": self.step, "split": watch.split, **watch.settings, **found})
            self._pause()

    def _save(self, state: TrainState, validation_loss: float | None) -> None:
        self.interrupts.doing = f"the checkpoint of step {self.step}"
        self._switch(CHECKPOINT)
        self._record_goodput()
        self.records.flush()  # in an object store, it checks first that no other run has taken over the folder
        trees = (jax.jit(to_trees) if self.config.model.scan else to_trees)(state)
        self.checkpoints.save(self.step, trees[PARAMS], trees[REST], {"step": self.step}, validation_loss)
        self._pause()

    def _pause(self) -> None:
        """The time since the last step was no training, and counts in no rate."""
        self._clock = None
        self.display.pause()
