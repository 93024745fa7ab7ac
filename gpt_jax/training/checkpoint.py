"""Checkpoints: Orbax writes and reads them in the background, and our own fingerprints tell a good one from a damaged one.

Orbax restores flipped bits silently, so a fingerprint of every array travels in the checkpoint's record. It is computed on the devices
(a sum modulo 2³² of mixed words: exact in any order, so sharding changes nothing), costs one pass over the memory, and no copy to the host.
Arrays are stored under their canonical per-layer paths, parameters apart from the rest so that they can be read alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy  # type: ignore[import-untyped]

from gpt_jax.training.storage import CHECKPOINTS, RunFolder

PARAMS, REST, RECORD = "params", "rest", "record"


class CheckpointError(ValueError):
    """No checkpoint can be read."""


class Restored(NamedTuple):
    """`trees` by item name, and the `record` that was saved beside them."""

    step: int
    trees: dict[str, Any]
    record: dict[str, Any]


def fingerprints(tree: Any) -> dict[str, str]:
    """Path → fingerprint of each array's content, as 8 hexadecimal digits."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = jax.device_get([_fingerprint(leaf) for _, leaf in leaves])
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{int(value):08x}"
        for (path, _), value in zip(leaves, sums, strict=True)
    }


@jax.jit
def _fingerprint(array: jax.Array) -> jax.Array:
    """One word for an array: each of its words is mixed with its position (murmur3's finalizer), and all are added up."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    words = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(array, words).astype(jnp.uint32).reshape(-1)
    x = bits ^ (jax.lax.iota(jnp.uint32, bits.size) * jnp.uint32(0x9E3779B1))
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(x ^ (x >> 16), dtype=jnp.uint32)


class Checkpoints:
    """The checkpoints of a run folder: the newest `keep` and the one of the lowest validation loss stay."""

    def __init__(self, folder: RunFolder, keep: int = 1, read_only: bool = False) -> None:
        self._folder = folder
        policy = preservation_policy.AnyPreservationPolicy([
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(
                get_metric_fn=lambda metrics: metrics["validation_loss"], reverse=True, n=1, keep_checkpoints_without_metrics=False
            ),
        ])
        self._manager = ocp.CheckpointManager(
            folder.make(CHECKPOINTS) if not read_only else folder.file(CHECKPOINTS),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy, read_only=read_only, create=not read_only, cleanup_tmp_directories=not read_only
            ),
            item_handlers={
                PARAMS: ocp.StandardCheckpointHandler(),
                REST: ocp.StandardCheckpointHandler(),
                RECORD: ocp.JsonCheckpointHandler(),
            },
        )

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def path(self, step: int) -> str:
        return str(self._folder.file(CHECKPOINTS) / str(step))

    def save(self, step: int, params: Any, rest: Any, record: Mapping[str, Any], validation_loss: float | None) -> None:
        """Starts writing a checkpoint and returns once the arrays are copied. Does nothing where `step` has one already."""
        if step in self._manager.all_steps():
            return
        trees = {PARAMS: params, REST: rest}
        full = dict(record) | {"fingerprints": {name: fingerprints(tree) for name, tree in trees.items()}}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.StandardSave(tree) for name, tree in trees.items()}, **{RECORD: ocp.args.JsonSave(full)}
            ),
            metrics=None if validation_loss is None else {"validation_loss": validation_loss},
            force=True,
        )

    def restore(self, step: int, templates: Mapping[str, Any]) -> Restored:
        """Reads one checkpoint into the shapes, types and shardings of `templates` (`params`, `rest` or both).

        Raises:
          CheckpointError: an array differs from what was saved.
          Exception: whatever Orbax meets in a damaged folder.
        """
        args = {name: ocp.args.StandardRestore(template) for name, template in templates.items()}
        items = self._manager.restore(step, args=ocp.args.Composite(**args, **{RECORD: ocp.args.JsonRestore()}))
        record = dict(items[RECORD])
        saved = record.pop("fingerprints")
        for name in templates:
            found = fingerprints(items[name])
            if found != saved[name]:
                differing = sorted(path for path in found.keys() | saved[name].keys() if found.get(path) != saved[name].get(path))
                raise CheckpointError(f"the content of {differing[0]} is not what was saved")
        return Restored(step, {name: items[name] for name in templates}, record)

    def restore_newest(self, templates: Mapping[str, Any], move_damaged: bool = False) -> Restored | None:
        """The newest good checkpoint, None where there is none at all. A damaged one is passed over with a warning, and moved to
        `damaged/` where `move_damaged`, so that its step can be saved anew.

        Raises:
          CheckpointError: there are checkpoints, and each is damaged.
        """
        steps = self.steps()
        failures = []
        for step in steps:
            try:
                restored = self.restore(step, templates)
            except Exception as error:  # noqa: BLE001  Orbax has no error of its own for a damaged checkpoint
                reason = str(error).split("\n")[0][:200]
                failures.append((step, reason))
                warnings.warn(f"checkpoint {self.path(step)} is damaged and passed over: {reason}", stacklevel=2)
                continue
            if move_damaged and failures:
                self._move_damaged(step for step, _ in failures)
            return restored
        if failures:
            step, reason = failures[0]
            raise CheckpointError(
                f"no checkpoint in {self._folder.file(CHECKPOINTS)} can be read (step {step}: {reason}): start in another folder"
            )
        return None

    def _move_damaged(self, steps: Iterator[int]) -> None:
        if self._folder.writes:
            aside = self._folder.make("damaged")
            for step in steps:
                self._folder.file(CHECKPOINTS).joinpath(str(step)).rename(aside / f"{step}-{np.random.default_rng().integers(1 << 32):08x}")
        self._manager.reload()

    def wait(self) -> None:
        """Returns once everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()
