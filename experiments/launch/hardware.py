"""Types of Cloud TPU slices: how many chips they have and which runtime version boots them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpt_jax.config.errors import nearest


@dataclass(frozen=True)
class Family:
    """A generation of TPUs. `units` is what the number in the name of a type counts for each chip: v4-32 has 32 cores
    on 16 chips, v5litepod-16 has 16 chips.
    """

    units: int
    runtime: str


# From Cloud TPU's pages "TPU versions" and "TPU software versions" (cloud.google.com/tpu/docs).
FAMILIES = {
    "v2": Family(2, "tpu-ubuntu2204-base"),
    "v3": Family(2, "tpu-ubuntu2204-base"),
    "v4": Family(2, "tpu-ubuntu2204-base"),
    "v5litepod": Family(1, "v2-alpha-tpuv5-lite"),
    "v5p": Family(2, "v2-alpha-tpuv5"),
    "v6e": Family(1, "v2-alpha-tpuv6e"),
}


def chips(type_: str) -> int:
    """The number of chips of a slice type such as `v5litepod-16`.

    Raises:
      ValueError: the type is not one of a known generation.
    """
    family, count = _parts(type_)
    return count // FAMILIES[family].units


def runtime_version(type_: str) -> str:
    """The runtime version for a slice type.

    Raises:
      ValueError: the type is not one of a known generation.
    """
    return FAMILIES[_parts(type_)[0]].runtime


def _parts(type_: str) -> tuple[str, int]:
    found = re.fullmatch(r"(v\w+)-(\d+)", type_)
    if found is None or found[1] not in FAMILIES:
        name = type_.split("-")[0]
        hint = "; v5e is called v5litepod here" if name == "v5e" else nearest(name, FAMILIES)
        raise ValueError(f"{type_} is not a type of TPU slice, such as v5litepod-16{hint}")
    count = int(found[2])
    if count < 1 or count % FAMILIES[found[1]].units:
        raise ValueError(f"{type_} is not a type of TPU slice: {found[1]} counts two cores for each chip")
    return found[1], count
