"""How long one execution of a compiled TPU program takes, from the compiler's own estimate of each operation.

Cycles of an operation × the trips of the loops around it ÷ the clock. What has no cycles gets a roofline: collectives
by the links of the torus, copies by the memory, Pallas kernels by their products and bytes. What runs beside other work
(between `-start` and `-done`) counts only for the time that the work does not cover. Nothing is measured; the estimate
knows no contention.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from gpt_jax.analysis.chips import Chip
from gpt_jax.analysis.hlo import ArrayType, Op, Program
from gpt_jax.analysis.kernels import kernel_seconds
from gpt_jax.analysis.kinds import kind_of
from gpt_jax.analysis.links import Traffic, stage, started, traffic
from gpt_jax.training.blockwise import FALLBACK

# Operations that compute nothing.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
FREE |= {"add-dependency", "optimization-barrier", "domain", "get-dimension-size"}
FREE_CALLS = {"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding", "LayoutConstraint"}


@dataclass(frozen=True)
class Item:
    """An operation that takes time: `seconds` of one execution, executed `runs` times.

    `source` says whose figure it is: the compiler's "cycles", or a roofline of a "kernel", of "links" or of "memory".
    """

    name: str
    opcode: str
    kind: str
    scope: str
    frame: int | None
    source: str
    seconds: float
    runs: int


@dataclass
class Estimate:
    """Seconds of one execution and what they are made of.

    `cycles` are the compiler's alone. `unknown` names loops whose number of trips the text does not tell; they count
    once.
    """

    seconds: float
    cycles: float
    items: list[Item]
    traffic: list[Traffic]
    unknown: list[str] = field(default_factory=list)

    def by_kind(self) -> dict[str, float]:
        """Kind of work → seconds, the longest first."""
        return _sums((item.kind, item.seconds * item.runs) for item in self.items)

    def kernels(self) -> dict[str, float]:
        """Pallas kernel or other custom call → seconds by its roofline."""
        return _sums((i.name.rstrip("0123456789."), i.seconds * i.runs) for i in self.items if i.source == "kernel")

    def sent(self) -> dict[str, float]:
        """Kind of collective → bytes that a chip sends."""
        return _sums((t.kind, t.sent * t.runs) for t in self.traffic)

    def sent_between_hosts(self) -> dict[str, float]:
        """Kind of collective → bytes that a chip sends in groups that span hosts."""
        return _sums((t.kind, t.sent * t.runs) for t in self.traffic if t.crosses_hosts)


def estimate(program: Program, chip: Chip, devices: list[Any], visible: float = 1.0) -> Estimate:
    """The estimate of a program compiled for `devices`, in the order of the mesh.

    `visible` is the share of T × S products that attention kernels compute; the text does not tell.
    """
    walk = _Walk(program, chip, devices, visible)
    seconds, items, sent = walk.run(program.entry)
    cycles = sum(item.seconds * item.runs for item in items if item.source == "cycles") * chip.clock
    return Estimate(seconds, cycles, items, sent, walk.unknown)


class _Walk:
    def __init__(self, program: Program, chip: Chip, devices: list[Any], visible: float) -> None:
        self.program, self.chip, self.devices, self.visible = program, chip, devices, visible
        self.unknown: list[str] = []
        self.known: dict[str, tuple[float, list[Item], list[Traffic]]] = {}

    def run(self, computation: str) -> tuple[float, list[Item], list[Traffic]]:
        """(seconds, items, traffic) of one execution of a computation."""
        if computation not in self.known:
            self.known[computation] = self._run(computation)
        return self.known[computation]

    def _run(self, computation: str) -> tuple[float, list[Item], list[Traffic]]:
        now, items, sent = 0.0, list[Item](), list[Traffic]()
        free_from = {"links": 0.0, "memory": 0.0}  # when each has finished what was started
        ends: dict[str, tuple[str, float]] = {}
        for op in self.program.computations[computation].values():
            if op.opcode in FREE or op.target in FREE_CALLS:
                continue
            if op.opcode in ("while", "call", "conditional"):
                seconds, inner, moved = self._nested(computation, op)
                now, items, sent = now + seconds, items + inner, sent + moved
                continue
            which = stage(self.program, op)
            if op.opcode.endswith("-done") or which == "done":
                start = started(self.program, computation, op) if which == "done" else op.operands[0]
                source, end = ends.get(start or "", ("links", now))
                if end > now:
                    items.append(self._item(op, source, end - now))
                    now = end
                continue
            if op.opcode.endswith("-update") and op.operands and op.operands[0] in ends:
                ends[op.name] = ends[op.operands[0]]
                continue
            found = None if which == "beside" else traffic(self.program, computation, op, self.devices, self.chip)
            sent = sent if found is None else [*sent, found]
            source, seconds = self._one(computation, op, found)
            if op.opcode.endswith("-start") or which == "start":
                free_from[source] = max(now, free_from[source]) + seconds
                ends[op.name] = (source, free_from[source])
            elif seconds:
                own = 0.0 if op.cycles is None else op.cycles / self.chip.clock
                if found is not None and own:  # a fusion that computes while it communicates
                    items.append(self._item(op, "cycles", own))
                    seconds = max(0.0, seconds - own)
                    now += own
                items.append(self._item(op, source, seconds))
                now += seconds
        return now, items, sent

    def _nested(self, computation: str, op: Op) -> tuple[float, list[Item], list[Traffic]]:
        if op.opcode == "conditional":  # the longest branch
            usual = [name for name in op.called if not self._is_fallback(name)] or op.called
            return max((self.run(name) for name in usual), key=lambda found: found[0])
        trips = self.program.trips(computation, op) if op.opcode == "while" else 1
        if trips is None:
            self.unknown.append(op.name)
            trips = 1
        seconds, items, sent = self.run(op.calls["body"] if op.opcode == "while" else op.called[0])
        return (
            trips * seconds,
            [replace(item, runs=trips * item.runs) for item in items],
            [replace(item, runs=trips * item.runs) for item in sent],
        )

    def _is_fallback(self, computation: str) -> bool:
        """Whether a branch is one that hardly ever runs, which its scope says."""
        return any(f"/{FALLBACK}/" in op.scope for op in self.program.computations[computation].values())

    def _one(self, computation: str, op: Op, found: Traffic | None) -> tuple[str, float]:
        """Whose figure it is, and the seconds of one execution."""
        if found is not None:
            return "links", found.seconds
        if op.cycles is not None:
            return "cycles", op.cycles / self.chip.clock
        operands = self.program.operand_types(computation, op)
        if op.opcode == "custom-call":
            return "kernel", kernel_seconds(op, operands, self.chip, self.visible)
        return "memory", _moved(self.program, op, operands) / self.chip.bandwidth

    def _item(self, op: Op, source: str, seconds: float) -> Item:
        kind = kind_of(self.program, op, source)
        return Item(op.name, op.opcode, kind, op.scope, op.frame, source, seconds, runs=1)


def _moved(program: Program, op: Op, operands: list[ArrayType]) -> int:
    """The bytes that an operation without cycles reads from memory and writes to it."""
    inner = {found.opcode for found in program.computations[op.called[0]].values()} if op.opcode == "fusion" else set()
    if op.opcode.endswith("-start"):  # its results are, besides the copy, names for its operands
        copy = op.types[1] if len(op.types) > 1 else op.types[0]
        return copy.bytes * (2 if copy.is_in_memory and all(array.is_in_memory for array in operands) else 1)
    if "gather" in inner:  # reads the rows that it writes, not the whole table
        return 2 * op.bytes
    if "scatter" in inner:  # reads rows, adds to them, writes them
        return 3 * operands[-1].bytes if operands else 0
    if op.opcode == "dynamic-update-slice":  # in place
        return 2 * operands[1].bytes
    if op.opcode in ("copy", "fusion"):
        return sum(array.bytes for array in (*op.types, *operands) if array.is_in_memory)
    return 0


def _sums(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    for key, value in pairs:
        totals[key] += value
    return dict(sorted(totals.items(), key=lambda pair: -pair[1]))
