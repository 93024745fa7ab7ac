"""Orbax's manager of the checkpoints of a run folder, as this package uses it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jax
import orbax.checkpoint as ocp

from gpt_jax.runs.folder import CHECKPOINTS, RunFolder
from gpt_jax.runs.preserve import RECORD, NewestAndBest
from gpt_jax.runs.saving import hush
from gpt_jax.training.state import PARAMS, REST

LISTINGS = 8  # how often a reader looks for checkpoints that a writer replaces meanwhile


def open_manager(folder: RunFolder, policy: NewestAndBest, read_only: bool) -> ocp.CheckpointManager:
    """The manager of one process that reads or, together, of all processes of a run that writes."""
    hush()
    me, processes = jax.process_index(), ocp.options.MultiprocessingOptions()
    if read_only:
        processes = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})

    def opened() -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            folder.file(CHECKPOINTS) if read_only else folder.make(CHECKPOINTS),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                read_only=read_only,
                save_interval_steps=0 if read_only else 1,  # Orbax warns that it sets 0 itself otherwise
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                multiprocessing_options=processes,
            ),
            item_handlers={
                PARAMS: ocp.StandardCheckpointHandler(),
                REST: ocp.StandardCheckpointHandler(),
                RECORD: ocp.JsonCheckpointHandler(),
            },
        )

    return listed(opened) if read_only else opened()


def listed(call: Callable[[], Any]) -> Any:
    """`call()`, again where a checkpoint vanishes while Orbax lists the folder."""
    for _ in range(LISTINGS - 1):
        with suppress(OSError):
            return call()
    return call()
