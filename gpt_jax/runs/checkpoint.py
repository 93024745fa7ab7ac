"""Checkpoints: Orbax writes and reads them in the background, and our own fingerprints tell a good one from a damaged
one.

Orbax restores flipped bits silently, so a fingerprint of every array travels in the checkpoint's record. It is computed
on the devices (a sum modulo 2³² of mixed words: exact in any order, so sharding changes nothing), costs one pass over
the memory, and no copy to the host. Arrays are stored under their canonical per-layer paths, parameters apart from the
rest so that they can be read alone.
"""

from __future__ import annotations

import math
import uuid
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy  # type: ignore[import-untyped]

from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.runs.folder import CHECKPOINTS, DAMAGED, RunFolder

PARAMS, REST, RECORD = "params", "rest", "record"


class CheckpointError(UserError):
    """A checkpoint is not there, or can't be read."""


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
    """One word for an array: each of its words is mixed with its position (murmur3's finalizer), and all are added."""
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
    """The checkpoints of a run folder, a context manager: the newest `keep` and the one of the lowest validation loss
    stay.
    """

    def __init__(self, folder: RunFolder, keep: int = 1, read_only: bool = False) -> None:
        self._folder = folder
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(keep),
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: metrics["validation_loss"],
                    reverse=True,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        if read_only and not folder.exists(CHECKPOINTS):
            raise MissingFile(f"the run in {folder} has no checkpoint yet: wait for its first one")
        self._manager = ocp.CheckpointManager(
            folder.make(CHECKPOINTS) if not read_only else folder.file(CHECKPOINTS),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                read_only=read_only,
                save_interval_steps=0 if read_only else 1,  # else it warns that it makes it so
                create=not read_only,
                cleanup_tmp_directories=not read_only,
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
        """Starts writing a checkpoint and returns once the arrays are copied. Does nothing where `step` has one
        already.
        """
        if step in self._manager.all_steps():
            return
        trees = {PARAMS: params, REST: rest}
        is_known = validation_loss is not None and math.isfinite(validation_loss)  # NaN is no best
        full = dict(record) | {"fingerprints": {name: fingerprints(tree) for name, tree in trees.items()}}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.StandardSave(tree) for name, tree in trees.items()},
                **{RECORD: ocp.args.JsonSave(full)},
            ),
            metrics={"validation_loss": validation_loss} if is_known else None,
            force=True,
        )

    def restore(self, step: int, templates: Mapping[str, Any]) -> Restored:
        """Reads one checkpoint into the shapes, types and shardings of `templates` (`params`, `rest` or both).

        Raises:
          CheckpointError: there is none of this step, it can't be read, or an array differs from what was saved.
        """
        items, record, saved = self._read(step, templates)
        for name in templates:
            found = fingerprints(items[name])
            differing = [path for path in found if path not in saved[name] or found[path] != saved[name][path]]
            if differing:
                raise CheckpointError(
                    f"{self.path(step)} is damaged: the content of {differing[0]} is not what was saved"
                )
        return Restored(step, {name: items[name] for name in templates}, record)

    def saved_fingerprints(self, step: int) -> dict[str, dict[str, str]]:
        """What `fingerprints` gave of each tree when the checkpoint was saved; its arrays are not read.

        Raises:
          CheckpointError: there is none of this step, or it can't be read.
        """
        return self._read(step, {})[2]

    def _read(self, step: int, templates: Mapping[str, Any]) -> tuple[Any, dict[str, Any], dict[str, dict[str, str]]]:
        """Items, record and saved fingerprints of one checkpoint."""
        if step not in self.steps():
            known = ", ".join(map(str, self.steps())) if self.steps() else "none"
            raise CheckpointError(f"{self._folder} has no checkpoint of step {step}; there are: {known}")
        args = {name: ocp.args.StandardRestore(template) for name, template in templates.items()}
        try:
            items = self._manager.restore(step, args=ocp.args.Composite(**args, **{RECORD: ocp.args.JsonRestore()}))
            record = dict(items[RECORD])
            return items, record, record.pop("fingerprints")
        except Exception as error:  # Orbax has no error of its own for a damaged checkpoint
            raise CheckpointError(f"{self.path(step)} can't be read: {str(error).splitlines()[0][:200]}") from error

    def restore_newest(self, templates: Mapping[str, Any], move_damaged: bool = False) -> Restored | None:
        """The newest good checkpoint, None where there is none at all. A damaged one is passed over with a warning, and
        moved to `damaged/` where `move_damaged`, so that its step can be saved anew.

        Raises:
          CheckpointError: there are checkpoints, and each is damaged.
        """
        damaged: list[int] = []
        for step in self.steps():
            try:
                restored = self.restore(step, templates)
            except CheckpointError as error:
                damaged.append(step)
                reason = str(error)
                warnings.warn(f"{reason}; going back to the checkpoint before it", stacklevel=2)
                continue
            if move_damaged and damaged:
                self.move_damaged(damaged)
            return restored
        if damaged:
            raise CheckpointError(f"no checkpoint in {self._folder} can be read ({reason}): start in another folder")
        return None

    def move_damaged(self, steps: list[int]) -> None:
        """Moves checkpoints to `damaged/`, so that their steps can be saved anew."""
        if self._folder.writes:
            aside = self._folder.make(DAMAGED)
            for step in steps:
                self._folder.file(CHECKPOINTS).joinpath(str(step)).rename(aside / f"{step}-{uuid.uuid4().hex[:8]}")
        multihost_utils.sync_global_devices("damaged checkpoints moved")
        self._manager.reload()

    def wait(self) -> None:
        """Returns once everything is on disk."""
        self._manager.wait_until_finished()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        """Waits too."""
        self._manager.close()
