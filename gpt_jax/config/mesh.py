"""The mesh of a run's devices, as text: `data=2,fsdp=4,tensor=2`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from gpt_jax.config.checks import require
from gpt_jax.config.errors import ConfigError, nearest

# What each axis divides.
AXES = {
    "data": "rows of a batch; each device has all parameters",
    "fsdp": "rows of a batch, and parameters and moments",
    "tensor": "heads, hidden units and the vocabulary",
    "sequence": "the positions of each row, for rows longer than a chip's memory",
}

ROWS = ("data", "fsdp")  # the axes that divide the rows of a batch
TENSOR = "tensor"
SEQUENCE = "sequence"  # the axis that divides the positions of each row
DATA = "data"
ALL_DATA = "data=-1"  # the default mesh


def parse_mesh(text: str) -> Mapping[str, int]:
    """Axis → size, in the order given; −1 stands for what fills the devices.

    Raises:
      ConfigError: an unknown axis, one given twice, a size that is no positive number, or several of −1.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\w+)\s*=\s*(-?\d+)\s*", part)
        if not found:
            raise ConfigError(f'mesh must read like "data=2,fsdp=4", not "{text}"')
        name, size = found[1], int(found[2])
        if name not in AXES:
            raise ConfigError(f'mesh has no axis "{name}"{nearest(name, AXES)}')
        require(name not in sizes, f'mesh has the axis "{name}" twice: give it once')
        require(size == -1 or size > 0, f"mesh.{name} must be a positive number, or -1 to fill the devices, not {size}")
        sizes[name] = size
    require(list(sizes.values()).count(-1) <= 1, "mesh has more than one axis of -1: give all sizes but one")
    return sizes


def fill_mesh(text: str, devices: int) -> Mapping[str, int]:
    """Axis → size on this many devices.

    Raises:
      ConfigError: as `parse_mesh`; or the sizes don't multiply to the number of devices.
    """
    sizes = dict(parse_mesh(text))
    known = math.prod(size for size in sizes.values() if size > 0)
    for name, size in sizes.items():
        if size == -1:
            sizes[name] = max(1, devices // known)
    if math.prod(sizes.values()) != devices:
        raise ConfigError(f'mesh "{text}" does not fit {devices} devices: make the product of its sizes {devices}')
    return sizes


def divides_parameters(sizes: Mapping[str, int]) -> bool:
    """Whether a mesh, axis → size, divides more than rows: whether there is an axis besides `data`, of more than one
    device.
    """
    return any(name != "data" and size != 1 for name, size in sizes.items())


def check_positions(length: int, parts: int) -> None:
    """Refuses rows of `length` tokens that cannot be divided over `parts` devices: each has an early and a late part.

    Raises:
      ConfigError: `length` is no multiple of 2 · `parts`.
    """
    require(
        parts == 1 or length % (2 * parts) == 0,
        f"a row of {length} tokens cannot be divided over the {parts} devices of the mesh's axis sequence: make its"
        f" length (model.context_length, where the data is text) a multiple of {2 * parts}",
    )


def check_ring(kernel: str | None, has_dropout: bool) -> None:
    """Refuses what attention over rows on several devices cannot compute: `model.kernel` and attention's dropout.

    Raises:
      ConfigError: a kernel that holds whole rows, or dropout.
    """
    require(
        kernel in (None, "chunked"),
        f'model.kernel is "{kernel}", which holds whole rows, and the mesh\'s axis sequence divides them: choose'
        ' "chunked", or leave it out',
    )
    require(
        not has_dropout,
        "attention.dropout acts on all probabilities of a row, and the mesh's axis sequence divides rows: set it to 0,"
        " or leave the axis out",
    )
