"""Compiles a run's programs for TPUs that are not attached: whether they fit, and how fast they are by estimate.

Needs libtpu (the extra `plan`), which compiles on any Linux x86-64 host. The programs and the shardings are those of a
run.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from gpt_jax import config
from gpt_jax.analysis.chips import Chip, chip_of
from gpt_jax.analysis.cost import training_flops_per_token
from gpt_jax.analysis.estimate import Estimate, estimate
from gpt_jax.analysis.forecast import Communication, Forecast
from gpt_jax.analysis.hlo import Program, parse
from gpt_jax.config.errors import ConfigError, UserError
from gpt_jax.config.mesh import DATA
from gpt_jax.data import Batch
from gpt_jax.model.gpt import GPT
from gpt_jax.model.splash import BLOCKS
from gpt_jax.training.partition import row_parts, shardings
from gpt_jax.training.sharding import batch_sharding, compile_step, make_mesh, shape_structs
from gpt_jax.training.state import state_shapes
from gpt_jax.training.step import make_train_step

# libtpu must not ask for a metadata server, which only TPU machines have, nor refuse other processes beside this one.
QUIET = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "3"}
QUIET |= {"TPU_MIN_LOG_LEVEL": "3", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-16"}


def tpu_mesh(topology: str, axes: str = DATA) -> Mesh:
    """The mesh of the TPU chips of a topology such as "v5e:2x2", to compile for but not to run on.

    Raises:
      UserError: libtpu is not installed, or does not know the topology.
      ConfigError: the sizes of the axes don't fit the number of chips.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("planning for TPUs needs libtpu: pip install 'gpt_jax[plan]' (Linux x86-64 only)")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # The two cores of a v4 chip work as one device, as they do for JAX on such a machine.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        devices = topologies.get_topology_desc(topology, "tpu", **options).devices
    except Exception as error:
        raise UserError(f'libtpu has no topology "{topology}" (try "v5e:2x2"): {error}') from error
    return make_mesh(devices, axes)


def plan_train_step(c: config.Config, topology: str, price: float | None = None) -> Forecast:
    """Compiles the train step of a resolved configuration for rows of packed documents, and estimates it.

    Raises:
      UserError: as `tpu_mesh`; the rows cannot be divided over the chips and micro-batches.
    """
    mesh = tpu_mesh(topology, c.mesh)
    _check_rows(c, mesh)
    shapes = state_shapes(c)
    places = shardings(c.model, mesh, shapes)
    state = shape_structs(shapes, places)
    step = compile_step(make_train_step(GPT(c.model), c), mesh, "jit", places)
    batch = shape_structs(batch_shapes(c.train.batch_size, c.model.context_length), batch_sharding(mesh))
    held = {
        "parameters": shard_bytes(state.params),
        "optimizer": shard_bytes(state) - shard_bytes(state.params),
        "batch": shard_bytes(batch),
    }
    tokens = c.train.batch_size * c.model.context_length
    flops = float(training_flops_per_token(c.model, c.model.context_length) * tokens)
    compiled, seconds = compile_program(step.lower(state, batch))  # type: ignore[attr-defined]
    chip = chip_of(mesh.devices.flat[0])
    return make_forecast(
        compiled,
        mesh,
        target="train",
        topology=topology,
        held=held,
        visible=visible_share(c.model, c.model.context_length),
        flops=flops,
        roofline=flops / (mesh.size * chip.flops),
        tokens=tokens,
        total_tokens=tokens * c.train.steps,
        price=price,
        compile_seconds=seconds,
        notes=_notes(c),
    )


def batch_shapes(rows: int, length: int) -> Batch:
    """Shapes of a batch of packed documents."""
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    return Batch(ids, ids, jax.ShapeDtypeStruct((rows, length), jnp.float32), ids, ids)


def shard_bytes(tree: Any) -> int:
    """The bytes of a tree of `jax.ShapeDtypeStruct`s with shardings on one chip."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def compile_program(lowered: jax.stages.Lowered) -> tuple[Any, float]:
    """The compiled program and the seconds it took. If it needs more memory than a chip has: the bytes it needs."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        # The compilation cache stores TPU programs but cannot load them without a TPU, so they are compiled again.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
        try:
            compiled: Any = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            compiled = _needed(str(error))
            if compiled is None:
                raise
    return compiled, time.perf_counter() - start


def _needed(message: str) -> int | None:
    """The bytes in the compiler's message that the memory is too small; None for another message."""
    found = re.search(r"RESOURCE_EXHAUSTED.*?(?:\(|Used )([\d.]+)([KMGT]?)i?B?\b", message, re.S)
    if not found:
        return None
    return int(float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1 if found[2] else 0))


def make_forecast(compiled: Any, mesh: Mesh, *, held: dict[str, int], visible: float, **fields: Any) -> Forecast:
    """The record of a program from `compile_program`. `held` are the bytes of what stays in memory; `fields` are those
    of the record that the program does not tell.
    """
    devices = list(mesh.devices.flat)
    chip: Chip = chip_of(devices[0])
    common = fields | {
        "chip": chip.name,
        "chips": mesh.size,
        "hosts": len({device.process_index for device in devices}),
        "mesh": {name: int(size) for name, size in mesh.shape.items()},
        "usable": int(chip.usable),
        "buffers": [],
    }
    if isinstance(compiled, int):
        memory = held | {"temporaries": compiled}
        nothing = {"seconds": None, "cycles": None, "work": {}, "kernels": {}, "communication": []}
        return Forecast(fits=False, memory=memory, **nothing, **common)
    stats = compiled.memory_analysis()
    memory = held | {"temporaries": stats.temp_size_in_bytes, "program": stats.generated_code_size_in_bytes}
    fresh = stats.output_size_in_bytes - stats.alias_size_in_bytes  # results that take no argument's place
    memory["results"] = fresh
    found = estimate(parse(compiled.as_text()), chip, devices, visible)
    unknown = [f"The text does not tell how often the loop {name} runs: it counts once." for name in found.unknown]
    common["notes"] = [*common["notes"], *unknown]
    return Forecast(
        fits=sum(memory.values()) <= chip.usable,
        memory=memory,
        seconds=found.seconds,
        cycles=found.cycles,
        work=found.by_kind(),
        kernels=found.kernels(),
        communication=_communication(found),
        **common,
    )


def visible_share(model: config.ModelConfig, length: int) -> float:
    """The share of the T × S products that attention kernels compute, which skip blocks without a visible key."""
    size = next((block for block in BLOCKS if length % block == 0), 1)
    first = size * np.arange(length // size)
    past = first[:, None] - first[None, :]  # from the first key of a block to the first query
    shares = []
    for attention in model.attentions:
        mask = getattr(attention, "mask", None)
        seen = past >= 0
        if isinstance(mask, config.Window):
            seen &= past - (size - 1) < mask.size
        shares.append(float(seen.mean()))
    return sum(shares) / len(shares)


def _communication(found: Estimate) -> list[Communication]:
    sent, between = found.sent(), found.sent_between_hosts()
    counts = {kind: sum(t.runs for t in found.traffic if t.kind == kind) for kind in sent}
    return [Communication(kind, sent[kind], between.get(kind, 0.0), counts[kind]) for kind in sent]


def _check_rows(c: config.Config, mesh: Mesh) -> None:
    parts = row_parts(mesh) * c.train.accumulate
    if c.train.batch_size % parts:
        raise ConfigError(
            f"train.batch_size ({c.train.batch_size}) cannot be divided over {row_parts(mesh)} parts of the mesh and"
            f" {c.train.accumulate} micro-batches: make it a multiple of {parts}, or change mesh or train.accumulate"
        )


def _notes(c: config.Config) -> list[str]:
    notes = ["Times are estimates of the compiler and of rooflines; nothing was measured."]
    if c.model.scan:
        notes.append("The layers are scanned: their body counts once for each layer.")
    return notes


__all__ = ["Program", "make_forecast", "plan_train_step", "tpu_mesh"]
