"""The overhead of the training loop: a run's loop compared to the bare compiled steps on the same batches, without
evaluations and checkpoints; and what goodput, watchdog and the look at each loss add to it.
"""

from __future__ import annotations

import io
import tempfile
import time
from typing import Any, cast

import jax
from rich.console import Console

from experiments.benchmarks.step import SIZES, gpt2_config, tokens
from experiments.benchmarks.timing import alternate, summary
from gpt_jax import config as c
from gpt_jax.data import Batch, open_data
from gpt_jax.model.gpt import GPT
from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.display import Display
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.goodput import DATA, Goodput, Stopwatch
from gpt_jax.runs.goodput import STEPS as IN_STEPS
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.loop import RunObserver, run_steps
from gpt_jax.runs.metrics import Metrics, TensorBoard
from gpt_jax.runs.profile import Trace
from gpt_jax.runs.rewind import LeftOut
from gpt_jax.runs.spikes import SpikeWatch
from gpt_jax.runs.watchdog import HangWatch
from gpt_jax.training.sharding import compile_step, make_mesh, replicate, shard_batch
from gpt_jax.training.state import init_state
from gpt_jax.training.step import make_train_step

STEPS = 100


class StoppedWatch(Stopwatch):
    """A stopwatch that costs nothing, to compare with."""

    def switch(self, phase: str) -> None: ...

    def end_step(self, step: int) -> None: ...


class NoCheckpoints:
    """Discards the checkpoint that the loop saves after its last step."""

    def save(self, *_: Any) -> None: ...

    def wait(self) -> None: ...


def run(rounds: int) -> dict[str, Any]:
    """Seconds of 100 steps at the small size, bare, in the loop with its records, TensorBoard events and progress bar,
    and in that loop without what watches it; the ratios of the best; and `watch_cost`.
    """
    size = SIZES["small"]
    config = gpt2_config(size)
    never = c.Evaluation(every=10**9), c.Checkpoint(every=10**9)
    train = c.Train(steps=STEPS, batch_size=size["batch"])
    config = c.Config(config.model, config.data, config.optimizer, train, evaluation=never[0], checkpoint=never[1])
    model, mesh = GPT(config.model), make_mesh()
    step = compile_step(make_train_step(model, config), mesh, "jit")
    inputs, targets = tokens(size)
    batch = Batch(inputs, targets, (targets >= 0).astype("float32"), None, None)

    def bare() -> Any:
        state, placed = replicate(init_state(model, config), mesh), shard_batch(batch, mesh, "jit")
        for _ in range(STEPS):
            state, metrics = step(state, placed)
        return metrics["loss"]

    def loop(is_watched: bool = True) -> Any:
        stopwatch = Stopwatch() if is_watched else StoppedWatch()
        state = replicate(init_state(model, config), mesh)
        display = Display(Console(file=io.StringIO(), force_terminal=True), STEPS, inputs.size, 1, None)
        with tempfile.TemporaryDirectory() as path, Interrupts() as interrupts:
            folder = RunFolder(path)
            records = Metrics(folder, 0, [TensorBoard(folder, 0)])
            observer = RunObserver(
                config=config,
                step=0,
                evaluate=lambda params: {"loss": 0.0, "loss_standard_error": 0.0, "accuracy": 0.0},
                watches=(),
                checkpoints=cast(Checkpoints, NoCheckpoints()),
                records=records,
                display=display,
                interrupts=interrupts,
                trace=Trace(None),
                goodput=Goodput(stopwatch, [], 0),
                spikes=SpikeWatch(config.train, open_data(c.Sort(), size["context"], 0), [], LeftOut().batch),
            )
            display.start(0)
            watchdog = HangWatch(c.Watchdog(factor=20.0 if is_watched else None), stopwatch, folder)
            batches = (shard_batch(rows, mesh, "jit") for rows in [batch] * STEPS)
            with watchdog:
                state = run_steps(step, state, batches, 0, observer)
            observer.finish()
            display.stop()
            records.close()
        return jax.tree.leaves(state)[0]

    measured = alternate({"bare": bare, "loop": loop, "unwatched": lambda: loop(False)}, rounds, calls=1)
    best = {name: arm["best_seconds"] for name, arm in measured.items()}
    return {
        **measured,
        "loop_against_bare": best["loop"] / best["bare"],
        "loop_against_unwatched": best["loop"] / best["unwatched"],
        "watch_cost": watch_cost(rounds),
    }


def watch_cost(rounds: int) -> dict[str, Any]:
    """Seconds that a step spends in the calls of goodput, watchdog and the look for spikes, with the watchdog's thread
    running: the best and the median of `rounds` times 10,000 steps, and the share of a step of 10 ms.
    """
    calls = 10_000
    train = c.Train(steps=1, batch_size=1, spikes=c.LogSpikes())
    values = [{"loss": 2.0 + 0.1 * (7 * i % 5), "grad_norm": 1.0, "skipped": 0} for i in range(5)]
    seconds: dict[str, list[float]] = {"goodput_and_watchdog": [], "with_spikes": []}
    for _ in range(rounds):
        for name, timed in seconds.items():
            stopwatch, found = Stopwatch(), SpikeWatch(train, open_data(c.Sort(), 64, 0), [], LeftOut().batch)
            goodput = Goodput(stopwatch, [], 0)
            with tempfile.TemporaryDirectory() as path, HangWatch(c.Watchdog(), stopwatch, RunFolder(path)):
                start = time.perf_counter()
                for step in range(calls):
                    stopwatch.switch(IN_STEPS)
                    stopwatch.switch(IN_STEPS)
                    if name == "with_spikes":
                        found.look(step, values[step % 5])
                    stopwatch.end_step(step)
                    stopwatch.switch(DATA)
                    if goodput.is_due():
                        goodput.record(step)
                timed.append((time.perf_counter() - start) / calls)
    return {name: summary(timed) | {"share_of_10_ms": min(timed) / 10e-3} for name, timed in seconds.items()}
