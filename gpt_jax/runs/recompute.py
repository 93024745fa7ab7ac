"""A check for silent data corruption: a step is computed twice from the same state and batch, and the bits compared.

Fingerprints are taken of each device's part of each array, on that device, so the check names devices. A fault in what
devices add up reaches all of them; then all are named, and one of them has it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax.config.errors import UserError
from gpt_jax.data import Batch
from gpt_jax.runs.checkpoint import fingerprints
from gpt_jax.training.state import TrainState

StepFn = Callable[[TrainState, Batch], tuple[TrainState, Any]]
Part = tuple[str, str, str]  # path of an array, its part, the device that holds this copy of it
SHOWN = 4


class Corrupted(UserError):
    """Two computations of one step differ, or two copies of one array."""


class Recomputed:
    """`step_fn`, of which every `every`-th step is computed twice. It needs the memory of a second state."""

    def __init__(self, step_fn: StepFn, every: int, start: int) -> None:
        """`start` is the number of updates before the first call."""
        self._step_fn, self._every, self._step = step_fn, every, start

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
        """Raises Corrupted if the two results differ, in this process's devices; nothing of them is saved then."""
        self._step += 1
        if self._step % self._every:
            return self._step_fn(state, batch)
        copy = jax.tree.map(jnp.copy, state)  # the step donates its state
        first = parts(self._step_fn(copy, batch))
        result = self._step_fn(state, batch)
        second = parts(result)
        arrays, devices = _differing(first, second)
        if devices:
            raise Corrupted(
                f"step {self._step}, computed twice from the same state and batch, gave other bits on"
                f" {_listed(devices)} (in {_listed(arrays)}): {ADVICE}"
            )
        arrays, devices = odd_copies(second)
        if devices:
            raise Corrupted(
                f"after step {self._step}, copies of one array differ between devices; those of {_listed(devices)} are"
                f" the odd ones (in {_listed(arrays)}): {ADVICE}"
            )
        return result


ADVICE = (
    "nothing was saved after it; go on from the newest checkpoint without this device. On GPUs a step repeats its bits"
    " only with XLA_FLAGS=--xla_gpu_deterministic_ops=true"
)


def parts(tree: Any) -> dict[Part, str]:
    """The fingerprint of each part of each array that a device of this process holds."""
    held: dict[str, jax.Array] = {}
    names: dict[str, Part] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for shard in leaf.addressable_shards:
            part = (name, str(shard.index), str(shard.device))
            held[str(len(names))] = shard.data
            names[str(len(names))] = part
    return {names[number]: value for number, value in fingerprints(held).items()}


def odd_copies(found: Mapping[Part, str]) -> tuple[list[str], list[str]]:
    """(arrays, devices): where copies of one part of an array differ, the devices whose copy is not the most frequent
    one. Of two copies that differ, nobody knows the right one, and both devices are named.
    """
    copies: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for (name, part, device), value in found.items():
        copies[name, part][device] = value
    arrays, devices = [], []
    for (name, _), values in copies.items():
        counts = Counter(values.values()).most_common()
        if len(counts) > 1:
            right = counts[0][0] if counts[0][1] > counts[1][1] else None
            arrays.append(name)
            devices += [device for device, value in values.items() if value != right]
    return _once(arrays), _once(devices)


def _differing(first: Mapping[Part, str], second: Mapping[Part, str]) -> tuple[list[str], list[str]]:
    differing = [part for part in first if first[part] != second[part]]
    return _once([name for name, _, _ in differing]), _once([device for _, _, device in differing])


def _once(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
