"""Ways to run a configuration on a number of chips: meshes, micro-batches, remat and kernels, with analytic bounds.

The bounds choose what is worth compiling. The memory is a lower bound, so what exceeds a chip's need not be tried; the
time is rough, and only orders the tries.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from gpt_jax import config
from gpt_jax.analysis.chips import Chip
from gpt_jax.analysis.cost import count_parameters, training_flops_per_token
from gpt_jax.config.mesh import AXES, ROWS, fill_mesh

NAMES = ("mesh", "train.accumulate", "model.remat", "model.kernel")
WIDEST = 16  # of the axis `tensor`, which talks in every layer
MICRO = 64  # micro-batches at most
REMAT: tuple[Literal["full", "dots"] | None, ...] = (None, "dots", "full")
KERNELS: tuple[Literal["chunked"] | None, ...] = (None, "chunked")  # None chooses splash attention where it can
MOMENTS = {config.Adamw: 2, config.Muon: 1, config.Lion: 1, config.Sgd: 1, config.Adafactor: 0}
COMPUTED: dict[Any, float] = {None: 1.0, "dots": 1.05, "full": 4 / 3}  # operations, with those that remat repeats


@dataclass(frozen=True)
class Candidate:
    """A configuration, the flags that make it, and its bounds: bytes a chip at least, and rough seconds a step."""

    config: config.Config
    flags: tuple[str, ...]
    memory: float
    seconds: float


def candidates(c: config.Config, length: int, chips: int, chip: Chip) -> list[Candidate]:
    """The ways whose lower bound of memory fits the chip, the one of fewest rough seconds first."""
    parameters = count_parameters(c.model)[0]
    flops = float(training_flops_per_token(c.model, length) * c.train.batch_size * length)
    found = []
    for way, flags in _ways(c, chips):
        axes = dict.fromkeys(AXES, 1) | dict(fill_mesh(way.mesh, chips))
        own = way.train.batch_size * length / (chips / axes["tensor"]) / way.train.accumulate
        memory = _memory(way, axes, parameters, own)
        if memory <= chip.usable:
            found.append(Candidate(way, flags, memory, _seconds(way, axes, parameters, flops, own, chips, chip)))
    return sorted(found, key=lambda way: way.seconds)


def meshes(c: config.Config, chips: int) -> Iterator[str]:
    """The meshes of so many chips that divide the rows of a batch, the heads and the MLPs evenly."""
    names = [name for name in AXES if name != "sequence" or c.train.batch_size < chips]
    sizes = [size for size in range(1, chips + 1) if chips % size == 0]
    for parts in itertools.product(sizes, repeat=len(names)):
        axes = dict(zip(names, parts, strict=True))
        if math.prod(parts) != chips or axes["tensor"] > WIDEST or not _divides(c.model, axes["tensor"]):
            continue
        if c.train.batch_size % math.prod(axes[name] for name in ROWS) == 0:
            yield ",".join(f"{name}={size}" for name, size in axes.items() if size > 1) or "data=1"


def _divides(model: config.ModelConfig, tensor: int) -> bool:
    heads = (getattr(attention, "heads", 1) for attention in model.attentions)
    return tensor == 1 or (model.width % tensor == 0 and all(count % tensor == 0 for count in heads))


def _ways(c: config.Config, chips: int) -> Iterator[tuple[config.Config, tuple[str, ...]]]:
    for mesh, remat, kernel in itertools.product(meshes(c, chips), REMAT, KERNELS):
        rows = math.prod(size for name, size in fill_mesh(mesh, chips).items() if name in ROWS)
        own = c.train.batch_size // rows
        for accumulate in (n for n in range(1, min(own, MICRO) + 1) if own % n == 0 and (n & (n - 1)) == 0):
            model = dataclasses.replace(c.model, remat=remat, kernel=kernel)
            train = dataclasses.replace(c.train, accumulate=accumulate)
            before = (c.mesh, c.train.accumulate, c.model.remat, c.model.kernel)
            after = (mesh, accumulate, remat, kernel)
            flags = tuple(f"--config.{n}={new}" for n, old, new in zip(NAMES, before, after, strict=True) if old != new)
            yield dataclasses.replace(c, mesh=mesh, model=model, train=train), flags


def _memory(c: config.Config, axes: dict[str, int], parameters: int, own: float) -> float:
    """Parameters, moments, summed gradients and what the layers keep for the backward pass."""
    state = 4 * parameters * (2 + MOMENTS[type(c.optimizer)]) / (axes["fsdp"] * axes["tensor"])
    size = 4 if c.model.dtype == "float32" else 2
    residual = own * c.model.width * size
    products = sum(_products(c.model, block) for block in c.model.blocks) * own * size / axes["tensor"]
    kept = {"full": 0.0, "dots": products, None: products}[c.model.remat]
    return state + c.model.layers * residual + kept


def _products(model: config.ModelConfig, block: config.BlockConfig) -> int:
    """The numbers per token that the products of a block make, at least."""
    hidden = getattr(block.mlp, "width", 0) * (2 if isinstance(block.mlp, config.GatedMlp) else 1)
    return 3 * model.width + hidden


def _seconds(
    c: config.Config, axes: dict[str, int], parameters: int, flops: float, own: float, chips: int, chip: Chip
) -> float:
    """Products at half of the peak, and what the axes send over two links. `own` are the tokens of a micro-batch that a
    chip works on.
    """
    slower = 1.1 if c.model.kernel == "chunked" else 1.0
    micro, passes = c.train.accumulate, 3 if c.model.remat == "full" else 2
    part = parameters / axes["tensor"]
    gathered = 2 * part * (1 - 1 / axes["fsdp"]) * (passes + 2) * micro
    summed = 8 * part / axes["fsdp"] * (1 - 1 / axes["data"])
    between = 4 * c.model.layers * 2 * own * c.model.width * 2 * (1 - 1 / axes["tensor"]) * micro
    return slower * COMPUTED[c.model.remat] * flops / (0.5 * chips * chip.flops) + (gathered + summed + between) / (
        2 * chip.link
    )
