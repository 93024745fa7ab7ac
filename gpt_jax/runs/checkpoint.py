"""Checkpoints: Orbax reads and writes them, and our own fingerprints detect a damaged one.

Orbax restores flipped bits silently, so each checkpoint's record holds a fingerprint of every array. A fingerprint is
computed on the devices, in one pass over the memory and without a copy to the host; it is a sum modulo 2³² of mixed
words, which is exact in any order, so it does not depend on the sharding. Arrays are stored under their canonical
per-layer paths. Parameters are an item of their own, so that they can be read alone.
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
from orbax.checkpoint.checkpoint_managers import preservation_policy  # type: ignore[import-untyped]

from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.runs import consensus
from gpt_jax.runs.folder import CHECKPOINTS, DAMAGED, RunFolder
from gpt_jax.runs.lease import LeaseLost
from gpt_jax.training.state import PARAMS, REST

RECORD = "record"


class CheckpointError(UserError):
    """A checkpoint is missing or cannot be read."""


class Restored(NamedTuple):
    """A restored checkpoint: `trees` by item name, and the `record` that was saved with them."""

    step: int
    trees: dict[str, Any]
    record: dict[str, Any]


def fingerprints(tree: Any) -> dict[str, str]:
    """Path → fingerprint of the array's content, 8 hexadecimal digits."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    divided = any(isinstance(leaf, jax.Array) and not leaf.sharding.is_fully_replicated for _, leaf in leaves)
    # One after the other where devices must meet: on CPUs, independent programs that are in flight at once may take
    # one another's threads and wait for ever.
    sums = [int(_fingerprint(leaf)) for _, leaf in leaves] if divided else [_fingerprint(leaf) for _, leaf in leaves]
    sums = jax.device_get(sums)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{int(value):08x}"
        for (path, _), value in zip(leaves, sums, strict=True)
    }


@jax.jit
def _fingerprint(array: jax.Array) -> jax.Array:
    """One uint32 for an array: the sum of its words, each mixed with its position by the finalizer of murmur3."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    words = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(array, words).astype(jnp.uint32)
    position, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):  # not by a reshape, which would bring a divided array together
        position += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    x = bits ^ (position * jnp.uint32(0x9E3779B1))
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(x ^ (x >> 16), dtype=jnp.uint32)


class Checkpoints:
    """The checkpoints of a run folder. A context manager, which waits for pending writes at its end.

    With `read_only`, a process opens them by itself; otherwise, all processes of a run do so together.
    It keeps the newest `keep` checkpoints and the one of the lowest validation loss, and deletes the others.

    Raises:
      MissingFile: with `read_only`, the folder has no checkpoint.
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
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
        self._manager = ocp.CheckpointManager(
            folder.make(CHECKPOINTS) if not read_only else folder.file(CHECKPOINTS),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                read_only=read_only,
                save_interval_steps=0 if read_only else 1,  # Orbax warns that it sets 0 itself otherwise
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                multiprocessing_options=alone if read_only else ocp.options.MultiprocessingOptions(),
            ),
            item_handlers={
                PARAMS: ocp.StandardCheckpointHandler(),
                REST: ocp.StandardCheckpointHandler(),
                RECORD: ocp.JsonCheckpointHandler(),
            },
        )

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def path(self, step: int) -> str:
        """The folder of the checkpoint of `step`."""
        return str(self._folder.file(CHECKPOINTS) / str(step))

    def save(self, step: int, params: Any, rest: Any, record: Mapping[str, Any], validation_loss: float | None) -> None:
        """Starts to write a checkpoint, and returns once the arrays are copied. Does nothing if `step` has one."""
        if step in self._manager.all_steps():
            return
        trees = {PARAMS: params, REST: rest}
        is_known = validation_loss is not None and math.isfinite(validation_loss)  # NaN must not become the best
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
          CheckpointError: there is none of this step, it cannot be read, or an array differs from the saved one. If
            several processes restore arrays that they share and one fails, all do, to go back to the same checkpoint.
        """
        if all(leaf.sharding.is_fully_addressable for leaf in jax.tree.leaves(dict(templates))):
            return self._restore(step, templates)
        failure: CheckpointError | None = None
        try:
            restored = self._restore(step, templates)
        except CheckpointError as error:
            failure = error
        if (failed := consensus.first_failed(failure is not None)) is not None:
            raise failure or CheckpointError(f"{self.path(step)} cannot be read by process {failed}")
        return restored

    def _restore(self, step: int, templates: Mapping[str, Any]) -> Restored:
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
        """Item name → fingerprints of the checkpoint as it was saved. Reads no arrays.

        Raises:
          CheckpointError: there is none of this step, or it cannot be read.
        """
        return self._read(step, {})[2]

    def _read(self, step: int, templates: Mapping[str, Any]) -> tuple[Any, dict[str, Any], dict[str, dict[str, str]]]:
        """The items, the record and the saved fingerprints of one checkpoint."""
        if step not in self.steps():
            known = ", ".join(map(str, self.steps())) if self.steps() else "none"
            raise CheckpointError(f"{self._folder} has no checkpoint of step {step}; there are: {known}")
        args = {name: ocp.args.StandardRestore(template) for name, template in templates.items()}
        try:
            items = self._manager.restore(step, args=ocp.args.Composite(**args, **{RECORD: ocp.args.JsonRestore()}))
            record = dict(items[RECORD])
            return items, record, record.pop("fingerprints")
        except Exception as error:  # Orbax raises many types for a damaged checkpoint
            raise CheckpointError(f"{self.path(step)} cannot be read: {str(error).splitlines()[0][:200]}") from error

    def restore_newest(self, templates: Mapping[str, Any], move_damaged: bool = False) -> Restored | None:
        """The newest good checkpoint; None if there is no checkpoint at all.

        Skips damaged checkpoints with a warning. With `move_damaged`, moves them to `damaged/`, so that their steps can
        be saved again.

        Raises:
          CheckpointError: there are checkpoints, but all are damaged.
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
        """Moves checkpoints to `damaged/`, so that their steps can be saved again."""
        if self._folder.writes:
            aside = self._folder.make(DAMAGED)
            for step in steps:
                self._folder.file(CHECKPOINTS).joinpath(str(step)).rename(aside / f"{step}-{uuid.uuid4().hex[:8]}")
        consensus.meet("damaged checkpoints moved")
        self._manager.reload()

    def wait(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Waits until everything is on disk, unless another run has taken over the folder."""
        if not isinstance(error, LeaseLost):
            self._manager.close()
