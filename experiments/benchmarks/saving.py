"""What a checkpoint costs the training loop: how long a save holds it up, and how much slower steps are meanwhile."""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

import jax

from experiments.benchmarks.step import SIZES, gpt2_config, tokens
from gpt_jax.data import Batch
from gpt_jax.model.gpt import GPT
from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.folder import RunFolder
from gpt_jax.training.sharding import compile_step, make_mesh, replicate, shard_batch
from gpt_jax.training.state import PARAMS, REST, init_state, to_trees
from gpt_jax.training.step import make_train_step

STEPS = 3  # between two saves


def run(rounds: int) -> dict[str, Any]:
    """At 10.7 million parameters and their moments: the median step, the median time that `save` holds the loop, as a
    share of the step, and the median of the steps beside which a checkpoint is written.
    """
    size = SIZES["medium"]
    config = gpt2_config(size)
    model, mesh = GPT(config.model), make_mesh()
    step = compile_step(make_train_step(model, config), mesh, "jit")
    inputs, targets = tokens(size)
    batch = shard_batch(Batch(inputs, targets, (targets >= 0).astype("float32"), None, None), mesh, "jit")
    state = replicate(init_state(model, config), mesh)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    alone: list[float] = []
    beside: list[float] = []
    saves: list[float] = []
    with tempfile.TemporaryDirectory() as path, Checkpoints(RunFolder(path)) as checkpoints:
        for number in range(1, rounds + 2):
            for _ in range(STEPS):
                state, seconds = _step(step, state, batch)
                alone.append(seconds)
            start = time.perf_counter()
            trees = to_trees(state)
            checkpoints.save(number, trees[PARAMS], trees[REST], {}, None)
            saves.append(time.perf_counter() - start)
            del trees
            state, seconds = _step(step, state, batch)
            beside.append(seconds)
            checkpoints.wait()
    alone, beside, saves = alone[STEPS:], beside[1:], saves[1:]  # the first ones compile
    median = statistics.median(alone)
    return {
        "parameters": parameters,
        "step_median_seconds": median,
        "save_median_seconds": statistics.median(saves),
        "save_best_seconds": min(saves),
        "save_against_step": statistics.median(saves) / median,
        "step_beside_a_write_median_seconds": statistics.median(beside),
    }


def _step(step: Any, state: Any, batch: Any) -> tuple[Any, float]:
    """The next state, once it is computed, and the seconds that it took."""
    start = time.perf_counter()
    state, _ = step(state, batch)
    jax.block_until_ready(state)
    return state, time.perf_counter() - start
