"""The overhead of the training loop: a run's loop compared to the bare compiled steps on the same batches, without
evaluations and checkpoints.
"""

from __future__ import annotations

import io
import tempfile
from typing import Any, cast

import jax
from rich.console import Console

from experiments.benchmarks.step import SIZES, gpt2_config, tokens
from experiments.benchmarks.timing import alternate
from gpt_jax import config as c
from gpt_jax.data import Batch, open_data
from gpt_jax.model.gpt import GPT
from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.display import Display
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.goodput import Goodput, Stopwatch
from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.loop import RunObserver, run_steps
from gpt_jax.runs.metrics import Metrics, TensorBoard
from gpt_jax.runs.profile import Trace
from gpt_jax.runs.spikes import SpikeWatch
from gpt_jax.training.sharding import compile_step, make_mesh, replicate, shard_batch
from gpt_jax.training.state import init_state
from gpt_jax.training.step import make_train_step

STEPS = 100


class NoCheckpoints:
    """Discards the checkpoint that the loop saves after its last step."""

    def save(self, *_: Any) -> None: ...

    def wait(self) -> None: ...


def run(rounds: int) -> dict[str, Any]:
    """Seconds of 100 steps at the small size, bare and in the loop with its records, TensorBoard events and progress
    bar, and the ratio of the best.
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

    def loop() -> Any:
        state = replicate(init_state(model, config), mesh)
        display = Display(Console(file=io.StringIO(), force_terminal=True), STEPS, inputs.size, 1, None)
        with tempfile.TemporaryDirectory() as path, Interrupts() as interrupts:
            folder = RunFolder(path)
            records = Metrics(folder, 0, [TensorBoard(folder, 0)])
            observer = RunObserver(
                config=config,
                step=0,
                evaluate=lambda params: {"loss": 0.0, "loss_standard_error": 0.0, "accuracy": 0.0},
                checkpoints=cast(Checkpoints, NoCheckpoints()),
                records=records,
                display=display,
                interrupts=interrupts,
                trace=Trace(None),
                goodput=Goodput(Stopwatch(), [], 0),
                spikes=SpikeWatch(config.train, open_data(c.Sort(), size["context"], 0), []),
            )
            display.start(0)
            batches = (shard_batch(rows, mesh, "jit") for rows in [batch] * STEPS)
            state = run_steps(step, state, batches, 0, observer)
            observer.finish()
            display.stop()
            records.close()
        return jax.tree.leaves(state)[0]

    measured = alternate({"bare": bare, "loop": loop}, rounds, calls=1)
    return {**measured, "loop_against_bare": measured["loop"]["best_seconds"] / measured["bare"]["best_seconds"]}
