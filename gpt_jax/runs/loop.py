"""The loop around the pure step: batches in, records and checkpoints out, and nothing that the devices wait for."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

import jax

from gpt_jax.config import Config
from gpt_jax.config.errors import UserError
from gpt_jax.data import Batch
from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.display import Display
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.metrics import Metrics
from gpt_jax.training.evaluate import Evaluate
from gpt_jax.training.state import PARAMS, REST, TrainState, to_trees

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
Course = Generator[Batch, dict[str, jax.Array], int]

PROFILED = (3, 8)  # from the first step of this process: compilation is over, and a trace of so few can still be read


class Trace:
    """The profiler's trace of a few steps, written to `path`; None: no trace."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._running = False

    def before(self, count: int) -> None:
        """To be called before the `count`-th step of this process."""
        if self._path is not None and count == PROFILED[0]:
            jax.profiler.start_trace(self._path)
            self._running = True
        if count == PROFILED[1]:
            self.end()

    def end(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


class TrainingDiverged(UserError):
    """Too many steps in a row had a loss or gradient that was not finite."""


@dataclass
class Loop:
    """What a run's loop talks to."""

    config: Config
    evaluate: Evaluate
    checkpoints: Checkpoints
    records: Metrics
    display: Display
    interrupts: Interrupts
    trace: Trace
    _clock: float | None = field(default=None, init=False)
    _skipped_in_row: int = field(default=0, init=False)

    def run(self, step: Step, state: TrainState, batches: Iterator[Batch], start: int) -> tuple[TrainState, int]:
        """Goes from `start` updates to `train.steps`, or to an interrupt; returns the state, which is saved, and its
        number of updates.

        Raises:
          TrainingDiverged: after `train.max_skipped` skipped updates in a row; the state is saved.
        """
        course = self.course(lambda: state, batches, start)
        try:
            batch = next(course)
            while True:
                state, metrics = step(state, batch)
                batch = course.send(metrics)
        except StopIteration as end:
            return state, end.value

    def course(self, state: Callable[[], TrainState], batches: Iterator[Batch], start: int) -> Course:
        """The loop as a coroutine, for whoever takes the steps: it yields each batch, is sent the metrics of its step,
        asks for the `state` where it evaluates or saves, and returns the number of updates. Raises as `run`.

        Update s is recorded as step s with the loss before it; an evaluation at step s is of the parameters after it.
        Metrics are fetched while the following step runs.
        """
        c = self.config
        step = start
        if start > 0:
            self._skipped_in_row = int(state().skipped_in_row)
            self._check_finite(start)
            if self._evaluation_due(start) and not self.records.had(start, "validation"):
                self._evaluate(start, state())  # the run was interrupted before it
        pending: dict[str, jax.Array] | None = None
        for step in range(start + 1, c.train.steps + 1):
            self.trace.before(step - start)
            metrics = yield next(batches)
            if pending is not None:
                self._report(step - 1, pending)
            pending = metrics
            last = step == c.train.steps
            stop = self.interrupts.requested(step) or self._skipped_in_row >= c.train.max_skipped
            evaluates = last or (self._evaluation_due(step) and not stop)
            saves = last or stop or step % c.checkpoint.every == 0
            if not (evaluates or saves):
                continue
            self._report(step, pending)
            pending = None
            now = state()
            loss = self._evaluate(step, now) if evaluates else None
            if saves:
                self._save(step, now, loss)
            del now  # the next step is given its memory
            if stop and not last:
                break
        self.trace.end()
        self._check_finite(step)
        return step

    def _check_finite(self, step: int) -> None:
        if self._skipped_in_row >= self.config.train.max_skipped:
            self.checkpoints.wait()
            raise TrainingDiverged(
                f"the loss or gradient was not finite in {self._skipped_in_row} steps in a row, up to step {step}: the"
                f" parameters of the last good step are in {self.checkpoints.path(step)}; lower optimizer.learning_rate"
                " or set train.clip_norm, in another folder"
            )

    def _evaluation_due(self, step: int) -> bool:
        return step % self.config.evaluation.every == 0

    def _report(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Fetches and records the metrics of update `step`."""
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        self._skipped_in_row = values.pop("skipped_in_row")
        rate = None if self._clock is None else values["tokens"] / (now - self._clock)
        self._clock = now
        if step % self.config.train.log_every == 0 or step == self.config.train.steps:
            loss = values["loss"]  # first in its line, for whoever reads it by eye
            self.records.write({"step": step, "split": "train", "loss": loss, **values, "tokens_per_second": rate})
        self.display.update(step, values["loss"])

    def _evaluate(self, step: int, state: TrainState) -> float:
        result = self.evaluate(state.params)
        self.records.write({"step": step, "split": "validation", **result})
        self.display.evaluated(step, result)
        self._pause()
        return float(result["loss"])

    def _save(self, step: int, state: TrainState, validation_loss: float | None) -> None:
        self.records.flush()  # a checkpoint is never ahead of what is recorded
        trees = (jax.jit(to_trees) if self.config.model.scan else to_trees)(state)
        self.checkpoints.save(step, trees[PARAMS], trees[REST], {"step": step}, validation_loss)
        self._pause()

    def _pause(self) -> None:
        """What was done since the last step is no training, and counts in no rate."""
        self._clock = None
        self.display.pause()
