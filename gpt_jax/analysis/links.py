"""What collectives send between chips: bytes, the groups that talk, whether they span hosts, and a time."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_jax.analysis.chips import Chip
from gpt_jax.analysis.hlo import Op, Program, first

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")


@dataclass(frozen=True)
class Traffic:
    """One collective: its kind, the bytes that each chip sends in one execution, the chips in a group, whether a group
    has chips of several hosts, the seconds of one execution and the number of executions.
    """

    name: str
    kind: str
    sent: float
    group: int
    crosses_hosts: bool
    seconds: float
    scope: str
    runs: int = 1


def traffic(program: Program, computation: str, op: Op, devices: list[Any], chip: Chip) -> Traffic | None:
    """What an operation sends; None for one that sends nothing.

    An operation may hold its collective in a computation that it calls (asynchronous ones, and the fusion of an
    all-reduce with the slice that makes it a reduce-scatter).
    """
    home, inner = _find(program, computation, op)
    if inner is None:
        return None
    kind = inner.opcode.removesuffix("-start")
    operands = sum(array.bytes for array in program.operand_types(home, inner))
    if inner is not op and kind == "all-reduce" and op.bytes < operands and op.opcode == "fusion":
        kind = "reduce-scatter"
    groups = replica_groups(inner.attributes, len(devices))
    size = max(map(len, groups))
    if kind == "collective-permute":
        return _made(op, inner, kind, float(operands), groups, 2, devices, chip)
    share = (size - 1) / size
    if kind == "all-gather":
        # The gathered result; a start's results repeat the operands.
        sent = share * max(operands * size, 0)
    elif kind == "all-reduce":
        sent = 2 * share * operands
    else:
        sent = share * operands
    return _made(op, inner, kind, sent, groups, size, devices, chip)


def stage(program: Program, op: Op) -> str | None:
    """Whether a fusion starts a collective that goes on beside others, goes on with it ("beside"), or ends it ("done").

    The TPU compiler writes such a collective into each of these fusions.
    """
    if op.opcode != "fusion":
        return None
    if op.called[0].startswith("async_collective_fusion"):
        return "beside"
    targets = {inner.target for inner in program.computations[op.called[0]].values()}
    return "start" if "AsyncCollectiveStart" in targets else "done" if "AsyncCollectiveDone" in targets else None


def started(program: Program, computation: str, done: Op) -> str | None:
    """The name of the fusion that starts the collective which `done` ends; None if it is not found."""
    ops, names, seen = program.computations[computation], list(done.operands), set[str]()
    while names:
        name = names.pop(0)
        op = ops.get(name)
        if op is None or name in seen:
            continue
        seen.add(name)
        which = stage(program, op)
        if which == "start":
            return name
        if op.opcode == "get-tuple-element" or which == "beside":
            names += op.operands
    return None


def replica_groups(attributes: str, devices: int) -> list[list[int]]:
    """The groups of chips, as positions in the mesh, of a collective; pairs for a permutation. All chips if none is
    named.
    """
    pairs = first(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)+)\}", attributes)
    if pairs is not None:
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", pairs)]
    iota = re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
    if iota is not None:
        return _iota(iota[1]).tolist()
    mesh = re.search(r"replica_groups=@?mesh\[([^\]]*)\](,? ?device_ids=\((.*?\]\)?)\))? ?\{([^}]*)\}", attributes)
    if mesh is None:
        return [list(range(devices))]
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    ids = np.arange(math.prod(sizes.values())) if mesh[3] is None else _iota(mesh[3]).reshape(-1)
    return _by_axes(ids.reshape(tuple(sizes.values())), sizes, mesh[4])


def _iota(text: str) -> np.ndarray:
    """`[2,8]<=[4,4]T(1,0)`: the numbers from 0 in the second shape, transposed, then in the first shape."""
    shape, source, order = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()  # type: ignore[union-attr]
    lengths = [int(n) for n in source.split(",")]
    ids = np.arange(math.prod(lengths)).reshape(lengths)
    if order is not None:
        ids = ids.transpose([int(n) for n in order.split(",")])
    return ids.reshape([int(n) for n in shape.split(",")])


def _by_axes(ids: np.ndarray, sizes: dict[str, int], axes: str) -> list[list[int]]:
    """Groups along some axes of a named mesh. `'a':(2)4` is the part of 4 of an axis, after a part of 2."""
    lengths: list[int] = []
    chosen: list[int] = []
    wanted = {name: (pre, size) for name, pre, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)}
    for name, size in sizes.items():
        pre, part = (int(n) if n else 0 for n in wanted.get(name, ("", "")))
        parts = [pre, part, size // (pre * part)] if part else [size]
        chosen += [len(lengths) + (1 if part else 0)] if name in wanted else []
        lengths += parts
    rest = [axis for axis in range(len(lengths)) if axis not in chosen]
    group = math.prod(lengths[axis] for axis in chosen)
    return ids.reshape(lengths).transpose(rest + chosen).reshape(-1, group).tolist()


def _find(program: Program, computation: str, op: Op) -> tuple[str, Op | None]:
    """The collective that an operation is or calls, and the computation that it is in."""
    if op.opcode.removesuffix("-start") in COLLECTIVES:
        return computation, op
    if op.opcode in ("fusion", "async-start") or op.opcode == "custom-call":
        for name in op.called:
            for inner in program.computations[name].values():
                home, found = _find(program, name, inner)
                if found is not None:
                    return home, found
    return computation, None


def _made(
    op: Op, inner: Op, kind: str, sent: float, groups: list[list[int]], size: int, devices: list[Any], chip: Chip
) -> Traffic:
    hosts = any(len({devices[chip_id].process_index for chip_id in group}) > 1 for group in groups)
    seconds = sent / (chip.link * _links(groups[0], devices, chip))
    return Traffic(op.name, kind, sent, size, hosts, seconds, op.scope or inner.scope)


def _links(group: list[int], devices: list[Any], chip: Chip) -> int:
    """The links over which a chip of a group can send at once: one per direction of the torus in which the group
    extends, two where that closes to a ring.
    """
    coordinates = np.array([getattr(devices[index], "coords", (index,)) for index in group])
    extents = [len(set(column)) for column in coordinates.T.tolist()]
    return max(1, sum((2 if extent % chip.ring == 0 else 1) for extent in extents if extent > 1))
