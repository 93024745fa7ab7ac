"""Whether the seeds of an arm train in one program or one after the other: chosen once, then recorded in the study."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax

from gpt_jax.ablation import records
from gpt_jax.ablation.plan import StudyPlan
from gpt_jax.ablation.schema import STUDY, Grouping
from gpt_jax.config import Config
from gpt_jax.config.conversion import config_hash
from gpt_jax.config.errors import ConfigError
from gpt_jax.data import open_data
from gpt_jax.runs import consensus
from gpt_jax.runs.folder import RunFolder, Workdir
from gpt_jax.runs.together import can_train_together
from gpt_jax.training.programs import Programs
from gpt_jax.training.sharding import make_mesh, replicate, row_share, shard_batch
from gpt_jax.training.state import given_by
from gpt_jax.training.together import stack, stack_rows

MOST = 8
TIMED = 4
GAIN = 0.9  # two compilations of one program differ in speed by a few percent


def recorded_grouping(plan: StudyPlan, workdir: Workdir) -> Grouping | None:
    """The grouping recorded in the folder; None if it holds no study, or a study of another baseline."""
    folder = RunFolder(workdir)
    if not folder.exists(STUDY):
        return None
    found = records.read_study(folder).together
    return found if found is not None and found.config_hash == _hash(plan) else None


def _hash(plan: StudyPlan) -> str:
    return config_hash(plan.arms[plan.study.baseline].config)


def choose(plan: StudyPlan, workdir: Workdir, asked: int | None, is_part: bool, programs: Programs) -> Grouping:
    """How the study in `workdir` trains its seeds: as recorded, as `asked`, or as measured to be faster.

    A part of a study (`is_part`) measures nothing: other parts may run on other machines, and all must choose alike.

    Raises:
      ConfigError: another grouping is recorded than asked for, or the runs can't train together.
    """
    config, earlier = plan.runs[0].resolved, recorded_grouping(plan, workdir)
    is_possible = can_train_together(config)
    if earlier is not None:
        if asked is not None and asked != earlier.count:
            raise ConfigError(
                f"the study in {RunFolder(workdir)} began with --together={earlier.count}: leave the flag out, or"
                " choose another --workdir"
            )
        return earlier
    if asked is not None:
        if asked > 1 and not is_possible:
            raise ConfigError(
                "runs can't train together by pmap, with wandb, if a spike sends one of them back, or on a mesh that"
                " divides parameters: leave --together out"
            )
        how = "one after the other" if asked == 1 else f"{asked} in one program"
        return Grouping(asked, f"{how}, as asked", _hash(plan))
    if is_part:
        return Grouping(1, "one after the other in each part, unless --together says how many", _hash(plan))
    count = min(len(plan.study.seeds), MOST)
    if count == 1 or not is_possible:
        return Grouping(1, "one after the other", _hash(plan))
    return time_both(config, count, programs, _hash(plan))


def time_both(config: Config, count: int, programs: Programs, chosen_for: str) -> Grouping:
    """Chooses by timing steps of the resolved configuration, first one state at a time and then `count` together."""
    mesh, steps = make_mesh(axes=config.mesh), config.train.steps
    data = open_data(config.data, config.model.context_length, config.data_seed, progress=False)
    rows = data.batch(0, config.train.batch_size, *row_share(mesh))
    seeds = [dataclasses.replace(config, seed=config.seed + i) for i in range(count)]
    step, batch = programs.step(config, mesh), shard_batch(rows, mesh, "jit", config.train.accumulate)
    compiling, one = _seconds(lambda state: step(state, batch), programs.init(config, mesh))
    alone = compiling + steps * count * one
    if steps * count * one <= compiling:
        reason = "one after the other: all their steps take less time than another compilation"
        return Grouping(1, reason, chosen_for, alone)
    step_together = programs.step_together(config, mesh)
    batches = shard_batch(stack_rows([rows] * count), mesh, "vmap", config.train.accumulate)
    try:
        given = replicate(stack([given_by(seed) for seed in seeds]), mesh)
        states = replicate(stack([programs.init(seed, mesh) for seed in seeds]), mesh)
        compiling, all_of_them = _seconds(lambda states: step_together(states, batches, given), states)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = f"one after the other: {count} at once do not fit into the device's memory"
        return Grouping(1, reason, chosen_for, alone)
    at_once = compiling + steps * all_of_them
    share = f"{at_once / alone:.2f} ×"
    if at_once < GAIN * alone:
        return Grouping(count, f"{count} in one program: {share} the time", chosen_for, alone, at_once)
    return Grouping(1, f"one after the other: {count} in one program take {share}", chosen_for, alone, at_once)


def _seconds(step: Callable[[Any], Any], state: Any) -> tuple[float, float]:
    """Seconds of the first call, and of the fastest of the following ones."""
    times = []
    for _ in range(1 + TIMED):
        start = time.perf_counter()
        state, metrics = step(state)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    compiling, fastest = consensus.first_says([times[0], min(times[1:])])
    return compiling, fastest
