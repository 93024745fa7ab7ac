"""TPU slices that are not attached, and programs compiled for them.

Needs libtpu (the extra `plan`), which compiles on any Linux x86-64 host.
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
from jax.experimental import topologies
from jax.sharding import Mesh

from gpt_jax.analysis.chips import Chip
from gpt_jax.config.errors import UserError
from gpt_jax.config.mesh import ALL_DATA
from gpt_jax.training.sharding import make_mesh

# For libtpu: no metadata server, which only TPU machines have; other processes may use it too; no log on stderr.
SETTINGS = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "3"}
SETTINGS |= {"TPU_MIN_LOG_LEVEL": "3", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-16"}
# Slices of the kind with the most memory, by the number of chips.
ROOMY = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}


def tpu_mesh(topology: str, axes: str = ALL_DATA) -> Mesh:
    """The mesh of the TPU chips of a topology such as "v5e:2x2", to compile for but not to run on.

    Raises:
      UserError: libtpu is not installed, or does not know the topology.
      ConfigError: the sizes of the axes don't fit the number of chips.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("planning for TPUs needs libtpu: pip install 'gpt_jax[plan]' (Linux x86-64 only)")
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    # The two cores of a v4 chip work as one device, as they do for JAX on such a machine.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        devices = topologies.get_topology_desc(topology, "tpu", **options).devices
    except Exception as error:
        raise UserError(f'libtpu has no topology "{topology}" (try "v5e:2x2"): {error}') from error
    return make_mesh(devices, axes)


def roomier(chip: Chip, chips: int) -> str | None:
    """A topology of as many chips with more memory; None if there is none."""
    return f"v5p:{ROOMY[chips]}" if chips in ROOMY and chip.name in ("v4", "v5e", "v6e") else None


def compile_for(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | int, float]:
    """The compiled program, or the bytes that it needs if a chip has less; and the seconds of the compiler."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        # The compilation cache stores TPU programs but cannot load them without a TPU, so they are compiled again.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
        try:
            return lowered.compile(), time.perf_counter() - start
        except jax.errors.JaxRuntimeError as error:
            needed = needed_bytes(str(error))
            if needed is None:
                raise
            return needed, time.perf_counter() - start


def shard_bytes(tree: Any) -> int:
    """The bytes of a tree of `jax.ShapeDtypeStruct`s with shardings on one chip."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def needed_bytes(message: str) -> int | None:
    """The bytes in the compiler's message that the memory is too small; None for another message."""
    found = re.search(r"^RESOURCE_EXHAUSTED: Ran out of memory on HBM, .*?\(([\d.]+)([KMGT])\)", message)
    return int(float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1)) if found else None
