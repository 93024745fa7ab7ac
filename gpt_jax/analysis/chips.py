"""What each kind of TPU can do at most: one table with its sources.

Peaks, memory and its bandwidth: https://cloud.google.com/tpu/docs/v4, and …/v5e, …/v5p, …/v6e, …/tpu7x. Bandwidth of a
link in one direction, a little below what those pages state, and which lines of chips close to rings:
https://jax-ml.github.io/scaling-book/tpus. `usable` is what libtpu leaves of the memory to a program, as its message
says when a program needs more.

The pages state no clock. It follows from the peak and what the matrix units do in a cycle: v4 and v5p have two cores of
four units of 128 × 128, v5e has one such core, and the later kinds do as much as four units of 256 × 256. By these
clocks, the compiler's cycles for a large product of matrices are 78 to 97% of the peak on every kind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from gpt_jax.config.errors import UserError


@dataclass(frozen=True)
class Chip:
    """One JAX device of a kind, which is a chip (TPU7x: half of one).

    `flops` are peak bfloat16 operations per second, `memory` and `usable` bytes, `bandwidth` bytes per second from and
    to the memory, `link` bytes per second of one link in one direction, `multiplier` the width of a matrix unit and
    `units` their number. A line of chips closes to a ring if its length is a multiple of `ring`.
    """

    name: str
    kind: str
    flops: float
    memory: float
    usable: float
    bandwidth: float
    link: float
    units: int
    multiplier: int
    ring: int

    @property
    def clock(self) -> float:
        """Cycles per second."""
        return self.flops / (2 * self.units * self.multiplier**2)


GIB = 2.0**30
CHIPS = (
    Chip("v4", r"TPU v4", 275e12, 32 * GIB, 30.75 * GIB, 1228e9, 45e9, 8, 128, ring=4),
    Chip("v5e", r"TPU v5 ?(lite|e)", 197e12, 16 * GIB, 15.75 * GIB, 819e9, 45e9, 4, 128, ring=16),
    Chip("v5p", r"TPU v5p?", 459e12, 95 * GIB, 95.74 * GIB, 2765e9, 90e9, 8, 128, ring=4),
    Chip("v6e", r"TPU v6 ?(lite|e)", 918e12, 32 * GIB, 31.25 * GIB, 1638e9, 90e9, 4, 256, ring=16),
    Chip("tpu7x", r"TPU ?7x", 2307e12 / 2, 96 * GIB, 94.75 * GIB, 7380e9 / 2, 90e9, 4, 256, ring=4),
)


def chip_of(device: Any) -> Chip:
    """The row of a device, attached or planned for.

    Raises:
      UserError: no row describes this kind.
    """
    kind = device.device_kind
    for chip in CHIPS:
        if re.fullmatch(chip.kind, kind):
            return chip
    names = ", ".join(chip.name for chip in CHIPS)
    raise UserError(f'no peaks are known for "{kind}": plan for one of {names}, or add a row to analysis/chips.py')
