"""Reads the text of a compiled program (scheduled HLO) into its computations and operations.

Only what an estimate of time and memory needs: shapes, operands, called computations, the scope in the model, the
source line, and the cycles that the TPU compiler writes on the operations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
ARRAY = re.compile(r"\b(pred|token|opaque|bf16|[suf]\d+(?:e\d+m\d+\w*)?|c\d+)\[([\d,]*)\](?:\{([^{}]*)\})?")
START = re.compile(r"^ +(ROOT )?%([^ ]+) = ")
HEADER = re.compile(r"^(ENTRY )?%([^ ]+) \(.*\{$")
CALLS = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation|called_computation)=%([\w.-]+)"
)
BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclass(frozen=True)
class ArrayType:
    """The type of one array: element type, lengths, and the layout, such as `1,0:T(8,128)(2,1)S(1)`."""

    dtype: str
    shape: tuple[int, ...]
    layout: str

    @property
    def is_in_memory(self) -> bool:
        """Whether it lies in the chip's memory (HBM), or in its cache."""
        return not re.search(r"S\([1-9]", self.layout)

    @property
    def bytes(self) -> int:
        """The size of its elements."""
        return self._bytes(self.shape)

    @property
    def stored(self) -> int:
        """The size with the padding of its layout, which fills the tiles of its minor axes."""
        order, tile = first(r"^([\d,]+)", self.layout), first(r"T\(([\d,]+)\)", self.layout)
        if order is None or tile is None:
            return self.bytes
        lengths = [self.shape[int(axis)] for axis in order.split(",")]
        for index, size in enumerate(reversed([int(n) for n in tile.split(",")])):
            if index < len(lengths):
                lengths[index] = -(-lengths[index] // size) * size
        return self._bytes(lengths)

    def _bytes(self, lengths: Sequence[int]) -> int:
        bits = BITS[self.dtype] if self.dtype in BITS else int(re.findall(r"\d+", self.dtype)[0])
        return math.prod(lengths) * bits // 8


@dataclass(frozen=True)
class Op:
    """One operation. `arguments` is the text between its parentheses, `attributes` the text after them."""

    name: str
    opcode: str
    types: tuple[ArrayType, ...]
    arguments: str
    attributes: str
    is_root: bool

    @cached_property
    def operands(self) -> list[str]:
        """The names of the operations whose results it reads."""
        return re.findall(r"%([\w.-]+)", self.arguments)

    @cached_property
    def calls(self) -> dict[str, str]:
        """Attribute, such as "body" → the computation that it names."""
        return dict(CALLS.findall(self.attributes))

    @cached_property
    def called(self) -> list[str]:
        """All computations that it calls."""
        branches = [name.strip(" %") for found in BRANCHES.findall(self.attributes) for name in found.split(",")]
        return [*self.calls.values(), *branches]

    @cached_property
    def scope(self) -> str:
        """Where the traced program made it, such as `jit(step)/while/body/…/mlp/up/dot_general`; "" if unknown."""
        return first(r'op_name="([^"]*)"', self.attributes) or ""

    @cached_property
    def frame(self) -> int | None:
        """The index of its source line in `Program.frames`."""
        return number(r"stack_frame_id=(\d+)", self.attributes)

    @cached_property
    def cycles(self) -> int | None:
        """The compiler's estimate of one execution; None where it makes none."""
        return number(r'"estimated_cycles":"?(\d+)', self.attributes)

    @cached_property
    def target(self) -> str | None:
        """What a custom call calls."""
        return first(r'custom_call_target="([^"]*)"', self.attributes)

    @property
    def bytes(self) -> int:
        """The size of its results."""
        return sum(array.bytes for array in self.types)


@dataclass(frozen=True)
class Frame:
    """A line of Python that made an operation, and the frame that called it (None: the outermost)."""

    file: str
    line: int
    caller: int | None


@dataclass
class Program:
    """Computation → its operations by name, in the order in which they run; and the source lines."""

    entry: str = ""
    computations: dict[str, dict[str, Op]] = field(default_factory=dict)
    frames: dict[int, Frame] = field(default_factory=dict)

    def operand_types(self, computation: str, op: Op) -> list[ArrayType]:
        """The types of the arrays that an operation reads."""
        ops = self.computations[computation]
        return [array for name in op.operands if name in ops for array in ops[name].types]

    def stack(self, frame: int | None) -> list[Frame]:
        """A source line and those that called it, innermost first."""
        found = []
        while frame is not None and frame in self.frames:
            found.append(self.frames[frame])
            frame = self.frames[frame].caller
        return found

    def trips(self, computation: str, loop: Op) -> int | None:
        """How often the body of a `while` runs; None if the text does not tell.

        This is the compiler's own count if it gives one; else the constant that the condition compares the counter
        with, less the counter's first value.
        """
        known = number(r'"known_trip_count":\{"n":"?(\d+)', loop.attributes)
        if known is not None:
            return known
        ops = self._inlined(loop.calls["condition"])
        for compare in (op for op in ops.values() if op.opcode == "compare" and "direction=LT" in op.attributes):
            counter, bound = (_through(ops, name) for name in compare.operands)
            if counter is None or bound is None or bound.opcode != "constant":
                continue
            index, limit = number(r"\bindex=(\d+)", counter.attributes), number(r"^(-?\d+)$", bound.arguments)
            if limit is not None and index is not None:
                return max(0, limit - (self._initial(computation, loop, index) or 0))
        return None

    def _inlined(self, computation: str) -> dict[str, Op]:
        """The operations of a computation and of the fusions in it, whose parameters are replaced by what they get."""
        ops = dict(self.computations[computation])
        for op in list(ops.values()):
            if op.opcode in ("fusion", "call"):
                for inner in self.computations[op.called[0]].values():
                    argument = number(r"^(\d+)$", inner.arguments) if inner.opcode == "parameter" else None
                    ops[inner.name] = inner if argument is None else ops[op.operands[argument]]
        return ops

    def _initial(self, computation: str, loop: Op, index: int) -> int | None:
        """The constant with which an element of a loop's state starts."""
        ops = self.computations[computation]
        start = ops.get(loop.operands[0])
        if start is None or start.opcode != "tuple":
            return None
        value = _through(ops, start.operands[index])
        return number(r"^(-?\d+)$", value.arguments) if value is not None and value.opcode == "constant" else None


def parse(text: str) -> Program:
    """The program of `compiled.as_text()`."""
    program, ops, lines = Program(frames=_frames(text)), {}, text.splitlines()
    pending: list[str] = []

    def finish() -> None:
        if pending:
            op = _op("\n".join(pending))
            ops[op.name] = op
            pending.clear()

    for line in lines:
        header = HEADER.match(line)
        if header:
            ops = program.computations[header[2]] = {}
            program.entry = header[2] if header[1] else program.entry
        elif START.match(line):
            finish()
            pending.append(line)
        elif line == "}":
            finish()
        elif pending:
            pending.append(line)  # some attributes have line breaks
    return program


def _op(text: str) -> Op:
    start = START.match(text)
    assert start is not None, text[:200]
    at = start.end()
    end = _closing(text, at) + 1 if text[at] == "(" else text.index(" ", at)
    opening = text.index("(", end)
    closing = _closing(text, opening)
    types = tuple(
        ArrayType(dtype, tuple(int(n) for n in shape.split(",") if n), layout)
        for dtype, shape, layout in ARRAY.findall(text[at:end])
    )
    opcode = text[end:opening].strip()
    return Op(start[2], opcode, types, text[opening + 1 : closing], text[closing + 1 :], bool(start[1]))


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis that opens at `opening` closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"no closing parenthesis: {text[opening : opening + 200]}")


def _frames(text: str) -> dict[int, Frame]:
    """The tables at the head of the text: file names, locations in them, and frames that point to locations."""
    files = {int(a): b for a, b in re.findall(r'^(\d+) "(.*)"$', _section(text, "FileNames"), re.M)}
    locations = re.findall(r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)", _section(text, "FileLocations"), re.M)
    lines = {int(index): (files[int(file)], int(line)) for index, file, line in locations}
    frames = re.findall(
        r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?", _section(text, "StackFrames"), re.M
    )
    # The caller is written as its index + 1; 1 stands for none.
    return {
        int(index): Frame(*lines[int(at)], None if caller in ("", "1") else int(caller) - 1)
        for index, at, caller in frames
        if int(at) in lines
    }


def _section(text: str, title: str) -> str:
    found = re.search(rf"^{title}\n(.*?)\n\n", text, re.M | re.S)
    return found[1] if found else ""


def _through(ops: dict[str, Op], name: str) -> Op | None:
    """The operation of this name; for one that only copies or reshapes, the one that it copies."""
    op = ops.get(name)
    while op is not None and op.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
        op = ops.get(op.operands[0])
    return op


def first(pattern: str, text: str) -> str | None:
    """The first group of the first match."""
    found = re.search(pattern, text)
    return found[1] if found else None


def number(pattern: str, text: str) -> int | None:
    """The first group of the first match, as a number."""
    found = first(pattern, text)
    return None if found is None else int(found)
