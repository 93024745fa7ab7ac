"""Plans: what a run's programs need and take on TPU chips that are not attached, by estimate.

The programs and the shardings are those of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gpt_jax import config
from gpt_jax.analysis.buffers import temporaries
from gpt_jax.analysis.chips import chip_of
from gpt_jax.analysis.cost import training_flops_per_token
from gpt_jax.analysis.estimate import Estimate, estimate
from gpt_jax.analysis.forecast import Buffer, Communication, Forecast
from gpt_jax.analysis.hlo import parse
from gpt_jax.analysis.topology import compile_for, roomier, shard_bytes, tpu_mesh
from gpt_jax.config.errors import ConfigError
from gpt_jax.data import Batch, open_data
from gpt_jax.model.gpt import GPT
from gpt_jax.model.splash import BLOCKS
from gpt_jax.training.partition import row_parts, shardings
from gpt_jax.training.resolve import resolve, resolved
from gpt_jax.training.sharding import batch_sharding, compile_step, shape_structs
from gpt_jax.training.state import state_shapes
from gpt_jax.training.step import make_train_step

ESTIMATED = "Times are estimates, from the compiler's cycles and from rooflines; nothing was measured."
SCANNED = "The layers are scanned: the compiled body counts once for each layer."


class Planned(NamedTuple):
    """A lowered program, and per chip the bytes of what stays in memory while it runs; `params` are its parameters'
    shapes, with shardings.
    """

    lowered: jax.stages.Lowered
    held: dict[str, int]
    params: Any


NOTHING: tuple[dict[str, int], list[Buffer], list[str]] = ({}, [], [])
Lower = Callable[[Mesh], Planned]


def resolved_without_text(c: config.Config) -> tuple[config.Config, int]:
    """The resolved configuration and the length T of its rows, without reading or tokenizing any text.

    Raises:
      ConfigError: the size of the vocabulary is not given, and only the text tells it.
    """
    if not isinstance(c.data, config.Text):
        data = open_data(c.data, c.model.context_length, c.data_seed)
        return resolve(c, data), data.row_length
    if c.model.vocab_size is None:
        raise ConfigError(
            "a plan reads no text, so it must be told the size of the vocabulary: give --config.model.vocab_size=N"
        )
    return resolved(c, c.model.vocab_size), c.model.context_length


def plan_train_step(c: config.Config, topology: str, price: float | None = None, is_explained: bool = True) -> Forecast:
    """Compiles the train step of a configuration for rows of packed documents, and estimates it. `price` is that of a
    chip for an hour. A program that does not fit is compiled once more for chips with more memory, to see what it
    holds, unless not `is_explained`.

    Raises:
      UserError: as `tpu_mesh`.
      ConfigError: as `resolved_without_text`; or the rows cannot be divided over the chips and micro-batches.
    """
    c, length = resolved_without_text(c)
    tokens = c.train.batch_size * length
    return make_forecast(
        c,
        topology,
        partial(lower_train_step, c, length),
        visible=visible_share(c.model, length),
        target="train",
        flops=float(training_flops_per_token(c.model, length) * tokens),
        tokens=tokens,
        total_tokens=tokens * c.train.steps,
        price=price,
        notes=[ESTIMATED, *([SCANNED] if c.model.scan else [])],
        is_explained=is_explained,
    )


def lower_train_step(c: config.Config, length: int, mesh: Mesh) -> Planned:
    """The train step of a resolved configuration, lowered for the mesh."""
    parts = row_parts(mesh) * c.train.accumulate
    if c.train.batch_size % parts:
        raise ConfigError(
            f"train.batch_size ({c.train.batch_size}) cannot be divided over {row_parts(mesh)} parts of the mesh and"
            f" {c.train.accumulate} micro-batches: make it a multiple of {parts}, or change mesh or train.accumulate"
        )
    shapes = state_shapes(c)
    places = shardings(c.model, mesh, shapes)
    state = shape_structs(shapes, places)
    batch = shape_structs(_batch_shapes(c.train.batch_size, length), batch_sharding(mesh))
    step = compile_step(make_train_step(GPT(c.model), c), mesh, "jit", places)
    params = shard_bytes(state.params)
    held = {"parameters": params, "optimizer": shard_bytes(state) - params, "batch": shard_bytes(batch)}
    return Planned(step.lower(state, batch), held, state.params)  # type: ignore[attr-defined]


def _batch_shapes(rows: int, length: int) -> Batch:
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    return Batch(ids, ids, jax.ShapeDtypeStruct((rows, length), jnp.float32), ids, ids)


def make_forecast(
    c: config.Config, topology: str, lower: Lower, *, visible: float, is_explained: bool = True, **fields: Any
) -> Forecast:
    """Compiles what `lower(mesh)` returns for a topology, and puts what it shows into a record.

    `visible` is as in `estimate`, `is_explained` as in `plan_train_step`; `fields` are those of the record that the
    program does not tell.
    """
    mesh = tpu_mesh(topology, c.mesh)
    devices = list(mesh.devices.flat)
    chip = chip_of(devices[0])
    planned = lower(mesh)
    compiled, seconds = compile_for(planned.lowered)
    common = fields | {
        "topology": topology,
        "chip": chip.name,
        "chips": mesh.size,
        "hosts": len({device.process_index for device in devices}),
        "mesh": {name: int(size) for name, size in mesh.shape.items()},
        "usable": int(chip.usable),
        "compile_seconds": seconds,
    }
    at_peak = common["flops"] / (mesh.size * chip.flops)
    reading = sum(planned.held.values()) / chip.bandwidth if common["target"] == "decode" else 0.0
    common["roofline"] = max(at_peak, reading)
    if isinstance(compiled, int):
        needed = compiled - sum(planned.held.values())
        elsewhere = _seen_elsewhere(c, lower, roomier(chip, mesh.size), common["target"]) if is_explained else NOTHING
        kinds, buffers, notes = elsewhere
        memory = planned.held | _divided(kinds, needed)
        nothing: dict[str, Any] = {"seconds": None, "cycles": None, "work": {}, "kernels": {}, "communication": []}
        common["notes"] = [*fields["notes"], *notes]
        return Forecast(fits=False, memory=memory, buffers=buffers, **nothing, **common)
    stats, program = compiled.memory_analysis(), parse(compiled.as_text() or "")
    assert stats is not None
    found = estimate(program, chip, devices, visible)
    kinds, buffers = temporaries(program, c, planned.params, common["target"])
    memory = planned.held | _divided(kinds, stats.temp_size_in_bytes) | {"program": stats.generated_code_size_in_bytes}
    if common["target"] != "decode":  # whose loop is over new tokens, and one token is what counts
        unknown = [f"The text does not tell how often the loop {name} runs: it counts once." for name in found.unknown]
        common["notes"] = [*fields["notes"], *unknown]
    return Forecast(
        fits=sum(memory.values()) <= chip.usable,
        memory=memory,
        buffers=buffers,
        seconds=found.seconds,
        cycles=found.cycles,
        work=found.by_kind(),
        kernels=found.kernels(),
        communication=_communication(found),
        **common,
    )


def _seen_elsewhere(
    c: config.Config, lower: Lower, topology: str | None, target: str
) -> tuple[dict[str, int], list[Buffer], list[str]]:
    """Temporaries, the largest arrays and a note, from the program for chips with more memory."""
    if topology is None:
        return {}, [], ["No kind of chip has so much more memory that it could show what the program holds."]
    planned = lower(tpu_mesh(topology, c.mesh))
    compiled, _ = compile_for(planned.lowered)
    if isinstance(compiled, int):
        return {}, [], [f"It does not fit on {topology} either, which could show what the program holds."]
    kinds, buffers = temporaries(parse(compiled.as_text() or ""), c, planned.params, target)
    return kinds, buffers, [f"The arrays are those of the same program on {topology}, which has room for it."]


def _divided(kinds: dict[str, int], total: int) -> dict[str, int]:
    """Bytes of temporaries by kind, scaled down to the total if they are more, and what is left of it."""
    known = sum(kinds.values())
    scaled = {kind: size if known <= total else size * total // known for kind, size in kinds.items()}
    return scaled | {"other temporaries": total - sum(scaled.values())}


def visible_share(model: config.ModelConfig, length: int) -> float:
    """The share of the T × S products that attention kernels compute, which skip blocks without a visible key."""
    size = next((block for block in BLOCKS if length % block == 0), 1)
    first = size * np.arange(length // size)
    past = first[:, None] - first[None, :]  # from the first key of a block to the first query
    shares = []
    for attention in model.attentions:
        mask, seen = getattr(attention, "mask", None), past >= 0
        if isinstance(mask, config.Window):
            seen &= past - (size - 1) < mask.size
        shares.append(float(seen.mean()))
    return sum(shares) / len(shares)


def _communication(found: Estimate) -> list[Communication]:
    between = found.sent_between_hosts()
    return [
        Communication(
            kind=kind,
            sent=sent,
            between_hosts=between[kind] if kind in between else 0.0,
            operations=sum(item.runs for item in found.traffic if item.kind == kind),
        )
        for kind, sent in found.sent().items()
    ]
