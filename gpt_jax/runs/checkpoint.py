"""Checkpoints: Orbax reads and writes them, and our own fingerprints detect a damaged one.

Orbax restores flipped bits silently, so each checkpoint's record (`runs/sealed.py`) holds a fingerprint of every array.
Arrays are stored under their canonical per-layer paths. Parameters are an item of their own, so that they can be read
alone.
"""

from __future__ import annotations

import errno
import math
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.runs import consensus
from gpt_jax.runs.fingerprint import fingerprints
from gpt_jax.runs.folder import CHECKPOINTS, DAMAGED, SAVED, FolderGone, RunFolder
from gpt_jax.runs.lease import LeaseLost
from gpt_jax.runs.manager import LISTINGS, listed, open_manager
from gpt_jax.runs.preserve import RECORD, NewestAndBest, known_losses, read_record
from gpt_jax.runs.saving import SaveFailed, answered, brisk
from gpt_jax.runs.sealed import DamagedRecord, Sealed, sealed, unsealed
from gpt_jax.training.state import PARAMS, REST


class CheckpointError(UserError):
    """A checkpoint is missing or cannot be read."""


class Restored(NamedTuple):
    """A restored checkpoint: `trees` by item name, the `record` and the `fingerprints` saved with them."""

    step: int
    trees: dict[str, Any]
    record: dict[str, Any]
    fingerprints: dict[str, dict[str, str]]


class Checkpoints:
    """The checkpoints of a run folder. A context manager, which waits for pending writes at its end.

    With `read_only`, a process opens them by itself; otherwise, all processes of a run do so together.
    It keeps the newest `keep` checkpoints, the one of the lowest validation loss, and the newest of a step up to
    `before`, and deletes the others.

    Raises:
      MissingFile: with `read_only`, the folder has no checkpoint.
    """

    def __init__(self, folder: RunFolder, keep: int = 1, read_only: bool = False, before: int | None = None) -> None:
        self._folder = folder
        self._read_only = read_only
        self._pending: int | None = None  # the step whose save may still be under way
        self._failure: SaveFailed | None = None
        self._policy = NewestAndBest(keep, {}, before)
        if read_only and not folder.exists(CHECKPOINTS):
            raise MissingFile(f"the run in {folder} has no checkpoint yet: wait for its first one")
        self._manager = open_manager(folder, self._policy, read_only)
        if not read_only:
            losses = known_losses(folder, self.steps()) if folder.writes else {}
            self._policy.losses |= dict(consensus.first_says(list(losses.items())))

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def path(self, step: int) -> str:
        """The folder of the checkpoint of `step`."""
        return str(self._folder.file(CHECKPOINTS) / str(step))

    def save(self, step: int, params: Any, rest: Any, record: Mapping[str, Any], validation_loss: float | None) -> None:
        """Starts to write a checkpoint, and returns once the arrays are copied. Does nothing if `step` has one.

        Raises:
          SaveFailed: this checkpoint cannot be written, or the one before it could not.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        trees = {PARAMS: params, REST: rest}
        full = sealed(step, validation_loss, {name: fingerprints(tree) for name, tree in trees.items()}, record)
        self.evaluated(step, full["validation_loss"])
        self._pending = step
        with self._answered(), brisk():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(tree) for name, tree in trees.items()},
                    **{RECORD: ocp.args.JsonSave(full)},
                ),
                force=True,
            )

    def evaluated(self, step: int, validation_loss: float | None) -> None:
        """Counts the validation loss of the parameters after `step` updates (None: unknown)."""
        if validation_loss is None or not math.isfinite(validation_loss):
            self._policy.losses.pop(step, None)
        else:
            self._policy.losses[step] = validation_loss

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
        items, saved = self._read(step, templates)
        for name in templates:
            found, expected = fingerprints(items[name]), saved.fingerprints.get(name, {})
            differing = [path for path in found if path not in expected or found[path] != expected[path]]
            if differing:
                raise CheckpointError(
                    f"{self.path(step)} is damaged: the content of {differing[0]} is not what was saved"
                )
        return Restored(step, {name: items[name] for name in templates}, saved.extra, saved.fingerprints)

    def templates(self, step: int) -> dict[str, Any]:
        """Templates to restore all items of a checkpoint on one device, with the shapes that its own files state.

        Raises:
          CheckpointError: there is none of this step, or it cannot be read.
        """
        self._check_there(step)
        alone = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def template(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=alone)

        try:
            found = self._manager.item_metadata(step)
            return {name: jax.tree.map(template, found[name].tree) for name in (PARAMS, REST)}
        except Exception as error:  # as for `_read`
            raise self._damaged(step, error) from error

    def saved_fingerprints(self, step: int) -> dict[str, dict[str, str]]:
        """Item name → fingerprints of the checkpoint as it was saved. Reads no arrays.

        Raises:
          CheckpointError: there is none of this step, or it cannot be read.
        """
        self._check_there(step)
        try:
            return read_record(self._folder, step).fingerprints
        except (DamagedRecord, OSError) as error:
            raise self._damaged(step, error) from error

    def _read(self, step: int, templates: Mapping[str, Any]) -> tuple[Any, Sealed]:
        """The items and the record of one checkpoint."""
        self._check_there(step)
        args = {name: ocp.args.StandardRestore(template) for name, template in templates.items()}
        try:
            items = self._manager.restore(step, args=ocp.args.Composite(**args, **{RECORD: ocp.args.JsonRestore()}))
            return items, unsealed(items[RECORD], step)
        except Exception as error:  # Orbax raises many types for a damaged checkpoint
            raise self._damaged(step, error) from error

    def _check_there(self, step: int) -> None:
        if step not in self.steps():
            known = ", ".join(map(str, self.steps())) if self.steps() else "none"
            raise CheckpointError(f"{self._folder} has no checkpoint of step {step}; there are: {known}")

    def _damaged(self, step: int, error: Exception) -> CheckpointError:
        if isinstance(error, DamagedRecord):
            return CheckpointError(f"{self.path(step)} is damaged: its record {error}")
        first = next(iter(str(error).splitlines()), type(error).__name__).split(" See full TensorStore details")[0]
        return CheckpointError(f"{self.path(step)} cannot be read: {first[:200]}")

    def restore_newest(self, templates: Mapping[str, Any], move_damaged: bool = False) -> Restored | None:
        """The newest good checkpoint; None if there is no checkpoint at all.

        Skips damaged checkpoints with a warning. With `move_damaged`, moves them to `damaged/`, so that their steps can
        be saved again. A reader looks again, up to `LISTINGS` times, where a writer replaces what it wants to read.

        Raises:
          CheckpointError: there are checkpoints, but all are damaged, or are replaced faster than they can be read.
        """
        restored, failed = self._newest_good(templates)
        if self._read_only and restored is None:
            restored, failed = self._look_again(templates, failed)
        for step, error in failed.items():
            if not self._read_only or self._is_on_disk(step):
                warnings.warn(f"{error}; going back to the checkpoint before it", stacklevel=2)
        if restored is not None and move_damaged and failed:
            self.move_damaged(list(failed))
        if restored is None and failed:
            raise CheckpointError(
                f"no checkpoint in {self._folder} can be read ({list(failed.values())[-1]}): start in another folder,"
                " or start again with --restart, which moves them aside"
            )
        return restored

    def _newest_good(self, templates: Mapping[str, Any]) -> tuple[Restored | None, dict[int, CheckpointError]]:
        """The newest checkpoint that can be restored, and why the newer ones cannot."""
        failed: dict[int, CheckpointError] = {}
        for step in self.steps():
            try:
                return self.restore(step, templates), failed
            except CheckpointError as error:
                failed[step] = error
        return None, failed

    def _look_again(
        self, templates: Mapping[str, Any], failed: dict[int, CheckpointError]
    ) -> tuple[Restored | None, dict[int, CheckpointError]]:
        """As `_newest_good`, once more for each time that the folder has changed. What fails twice is damaged."""
        for attempt in range(LISTINGS):
            time.sleep(min(0.05 * 2**attempt, 1.0))
            listed(self._manager.reload)
            before = failed
            restored, failed = self._newest_good(templates)
            if restored is not None or (failed.keys() == before.keys() and all(map(self._is_on_disk, failed))):
                return restored, failed
        raise CheckpointError(
            f"the checkpoints in {self._folder} are being replaced faster than they can be read: try again, raise"
            " checkpoint.keep or checkpoint.every, or wait for the run to end"
        )

    def _is_on_disk(self, step: int) -> bool:
        return self._folder.exists(f"{CHECKPOINTS}/{step}")

    def move_damaged(self, steps: list[int]) -> None:
        """Moves checkpoints to `damaged/`, so that their steps can be saved again."""
        if self._folder.writes:
            aside = self._folder.make(DAMAGED)
            for step in filter(self._is_on_disk, steps):
                self._folder.file(CHECKPOINTS).joinpath(str(step)).rename(aside / f"{step}-{uuid.uuid4().hex[:8]}")
        consensus.meet("damaged checkpoints moved")
        self.forget(steps)

    def forget(self, steps: Iterable[int]) -> None:
        """Lists the checkpoints again, after those of `steps` were moved."""
        self._manager.reload()
        for step in steps:
            self.evaluated(step, None)

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
          SaveFailed: a checkpoint of this process could not be written, also if that was said before.
        """
        with self._answered():
            self._manager.wait_until_finished()
            if self._pending is not None and self._folder.writes and not self._is_on_disk(self._pending):
                raise FileNotFoundError(errno.ENOENT, "the finished checkpoint is not there")
        if self._pending is not None and not self._folder.exists(SAVED):
            self._folder.write_json(SAVED, {"step": self._pending})
        self._pending = None

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Remembers a failed save: Orbax raises each error only once, and then takes the save for finished."""
        try:
            if self._failure is not None:
                raise self._failure
            with answered(self._pending, self.path(self._pending or 0)):
                yield
        except SaveFailed as error:
            self._failure = error
            raise

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits as `wait`, unless another run has taken over the folder. Where another error ends the run, a failed
        save is a warning; where that error is the folder's end, it is no news.
        """
        if kind is not None and issubclass(kind, LeaseLost):
            return
        try:
            if self._failure is None:
                self.wait()
        except SaveFailed as error:
            if kind is None:
                raise
            if not issubclass(kind, FolderGone):
                warnings.warn(str(error), stacklevel=2)
        finally:
            with nullcontext() if self._failure is None else suppress(Exception):  # which is said above
                self._manager.close()
