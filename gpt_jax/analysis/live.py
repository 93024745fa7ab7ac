"""Which arrays a compiled program holds at the moment when it needs most memory, found from its text.

The compiler's own assignment is not in the text, so this follows what each operation must keep: a result lives until
its last use; loops and updates of slices work in place. The compiler needs somewhat more, for gaps between arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt_jax.analysis.hlo import ArrayType, Op, Program, number

IN_PLACE = ("bitcast", "while", "optimization-barrier", "get-tuple-element", "tuple")
MADE_EMPTY = ("custom-call", "broadcast", "copy")
PASSED = ("dynamic-update-slice", "bitcast", "copy", "convert", "reshape", "transpose", "broadcast")
NOTHING = ("constant", "after-all", "partition-id", "replica-id", "iota")


@dataclass
class Held:
    """An array, the operation that makes it, and the positions in its computation between which it lives."""

    array: ArrayType
    computation: str
    op: Op
    first: int
    last: int


Value = list[Held | int | None]  # for each array of a result: its place, the parameter's element that it is, or neither


def peak(program: Program) -> tuple[int, list[Held]]:
    """(bytes, arrays) that live at the peak besides the program's arguments, the largest first."""
    total, held = _Peak(program).of(program.entry)
    return total, sorted(held, key=lambda found: -found.array.stored)


def origin(program: Program, held: Held) -> Op:
    """The operation that computes what an array holds. The arrays in which a loop collects the results of its steps are
    made before it, without contents; this is the operation in the loop.
    """
    ops = program.computations[held.computation]
    for loop in ops.values():
        if held.op.opcode not in MADE_EMPTY or loop.opcode != "while":
            continue
        elements = ops[loop.operands[0]].operands
        if held.op.name in elements:
            body = program.computations[loop.calls["body"]]
            root = next(op for op in body.values() if op.is_root)
            index = elements.index(held.op.name)
            if root.opcode == "tuple" and root.operands[index] in body:
                return _written(program, body, body[root.operands[index]])
    return held.op


def _written(program: Program, ops: dict[str, Op], op: Op) -> Op:
    """The operation that computes what `op` writes into an array."""
    while True:
        if op.opcode == "get-tuple-element" and op.operands[0] in ops and ops[op.operands[0]].opcode == "fusion":
            index, fusion = number(r"\bindex=(\d+)", op.attributes) or 0, ops[op.operands[0]]
            inner = program.computations[fusion.called[0]]
            root = next(found for found in inner.values() if found.is_root)
            return _written(program, inner, inner[root.operands[index]] if root.opcode == "tuple" else root)
        if op.opcode == "fusion":
            inner = program.computations[op.called[0]]
            found = _written(program, inner, next(found for found in inner.values() if found.is_root))
            if found.opcode != "parameter":
                return found
            op = ops[op.operands[int(found.arguments)]] if op.operands[int(found.arguments)] in ops else op
            return op
        following = op.operands[1:2] if op.opcode == "dynamic-update-slice" else op.operands[:1]
        if op.opcode not in PASSED or not following or following[0] not in ops:
            return op
        op = ops[following[0]]


class _Peak:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.known: dict[str, tuple[int, list[Held]]] = {}

    def of(self, computation: str) -> tuple[int, list[Held]]:
        if computation not in self.known:
            self.known[computation] = self._of(computation)
        return self.known[computation]

    def _of(self, computation: str) -> tuple[int, list[Held]]:
        ops = list(self.program.computations[computation].values())
        held, values, used = self._values(computation, ops)
        root = next(op for op in ops if op.is_root)
        for index, place in enumerate(values[root.name]):
            if isinstance(place, Held):
                place.last = len(ops)
                # The body of a loop writes its next state where the old one was, once that is read.
                if root.opcode == "tuple" and index in used and used[index] <= place.first:
                    held.remove(place)
        steps = [0] * (len(ops) + 2)
        for place in held:
            steps[place.first] += place.array.stored
            steps[place.last + 1] -= place.array.stored
        best, best_at, inner, now = -1, 0, list[Held](), 0
        for at, op in enumerate(ops):
            now += steps[at]
            extra, below = self._below(op)
            if now + extra > best:
                best, best_at, inner = now + extra, at, below
        return max(best, 0), [place for place in held if place.first <= best_at <= place.last] + inner

    def _below(self, op: Op) -> tuple[int, list[Held]]:
        """What the computations that it calls add."""
        if op.opcode == "while":
            return self.of(op.calls["body"])
        if op.opcode in ("call", "conditional"):
            return max((self.of(name) for name in op.called), key=lambda found: found[0])
        return 0, []

    def _values(self, computation: str, ops: Sequence[Op]) -> tuple[list[Held], dict[str, Value], dict[int, int]]:
        """(arrays made here, operation → value, element of the parameter → its last use)."""
        held: list[Held] = []
        values: dict[str, Value] = {}
        used: dict[int, int] = {}
        for at, op in enumerate(ops):
            operands = [values[name] for name in op.operands if name in values]
            if op.opcode not in ("get-tuple-element", "tuple", "bitcast"):
                for place in (place for value in operands for place in value):
                    if isinstance(place, Held):
                        place.last = at
                    elif place is not None:
                        used[place] = at
            values[op.name] = self._value(computation, op, operands, at, held)
        return held, values, used

    def _value(self, computation: str, op: Op, operands: list[Value], at: int, held: list[Held]) -> Value:
        def made(array: ArrayType) -> Held | None:
            if not array.is_in_memory or not array.stored:
                return None
            held.append(Held(array, computation, op, at, at))
            return held[-1]

        if op.opcode == "parameter":
            return list(range(len(op.types))) if computation != self.program.entry else [None] * len(op.types)
        if op.opcode in NOTHING:
            return [None] * len(op.types)
        if op.opcode == "get-tuple-element":
            index = number(r"\bindex=(\d+)", op.attributes) or 0
            return [operands[0][index]] if operands and index < len(operands[0]) else [None]
        if op.opcode in IN_PLACE:
            return [place for value in operands for place in value]
        if op.opcode == "dynamic-update-slice":
            return operands[0]
        if op.opcode.endswith("-done"):
            return _result(operands[0], op)
        if op.opcode == "copy-start":
            return [made(op.types[0]), *operands[0], None]
        if op.opcode.endswith("-start") and len(op.types) > 1:
            known = {(a.dtype, a.shape) for a in self.program.operand_types(computation, op)}
            return [None if (a.dtype, a.shape) in known else made(a) for a in op.types]
        updated = self._updated(op) if op.opcode == "fusion" else {}
        return [
            operands[updated[i]][0] if i in updated and updated[i] < len(operands) else made(array)
            for i, array in enumerate(op.types)
        ]

    def _updated(self, fusion: Op) -> dict[int, int]:
        """Result → operand for what a fusion updates in place."""
        ops = self.program.computations[fusion.called[0]]
        root = next(op for op in ops.values() if op.is_root)
        outputs = root.operands if root.opcode == "tuple" else [root.name]
        found = {}
        for index, name in enumerate(outputs):
            op = ops.get(name)
            while op is not None and op.opcode in ("bitcast", "copy", "dynamic-update-slice"):
                if op.opcode == "dynamic-update-slice":
                    target = ops.get(op.operands[0])
                    while target is not None and target.opcode in ("bitcast", "dynamic-update-slice"):
                        target = ops.get(target.operands[0])
                    if target is not None and target.opcode == "parameter":
                        found[index] = int(target.arguments)
                    break
                op = ops.get(op.operands[0])
        return found


def _result(started: Value, done: Op) -> Value:
    """What an operation that waits returns of what was started."""
    places = [place for place in started if isinstance(place, Held)]
    found: Value = []
    for array in done.types:
        same = [p for p in places if (p.array.dtype, p.array.shape) == (array.dtype, array.shape)]
        found.append(same[0] if same else None)
    return found
