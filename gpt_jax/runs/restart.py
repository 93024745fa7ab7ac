"""Whether the run in a folder can go on at all, and the start anew that moves aside what is there."""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Sequence

from gpt_jax.config import Config
from gpt_jax.config.errors import UserError
from gpt_jax.runs import consensus, metrics
from gpt_jax.runs.folder import (
    ASIDE,
    CHECKPOINTS,
    CONFIG,
    DAMAGED,
    ENVIRONMENT,
    EVALUATION,
    LEFT_OUT,
    LOSS_PLOT,
    METRICS,
    PROFILE,
    SAVED,
    TENSORBOARD,
    TOKENIZER,
    RunFolder,
)

OF_A_RUN = (
    *(CONFIG, ENVIRONMENT, METRICS, EVALUATION, LOSS_PLOT, CHECKPOINTS, DAMAGED, SAVED, TOKENIZER),
    *(TENSORBOARD, PROFILE, LEFT_OUT),
)
WAY_OUT = (
    "put it back, choose another --workdir, or give --restart once, which moves aside what is there and starts again"
    " from step 0"
)


def move_aside(folder: RunFolder) -> None:
    """Moves all that a run has written to a new folder in `aside/`, on every process together. Deletes nothing."""
    if folder.writes:
        found = [name for name in OF_A_RUN if folder.exists(name)]
        if found:
            place = folder.make(_new_place())
            for name in found:
                folder.file(name).rename(place / name)
    consensus.meet("run moved aside")


def put_aside(folder: RunFolder, steps: Sequence[int]) -> str:
    """Moves the checkpoints of `steps` to a new folder in `aside/`, with a copy of the metrics, on every process
    together; returns its path.
    """
    name = consensus.first_says(_new_place())
    if folder.writes:
        place = folder.make(f"{name}/{CHECKPOINTS}")
        for step in steps:
            folder.file(f"{CHECKPOINTS}/{step}").rename(place / str(step))
        if folder.exists(METRICS):
            folder.write_text(f"{name}/{METRICS}", folder.read_text(METRICS))
    consensus.meet("checkpoints put aside")
    return str(folder.file(name))


def _new_place() -> str:
    return f"{ASIDE}/{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"


def check_whole(folder: RunFolder, earlier: Config | None) -> None:
    """Checks that a run with progress still has what it needs to go on; `earlier` is its resolved configuration.

    A run that ended before its first checkpoint starts again from step 0, with a warning.

    Raises:
      UserError: on every process, if the configuration or the checkpoints are gone.
    """
    lost, stopped = consensus.first_says(_lost(folder, earlier) if folder.writes else None)
    if lost is not None:
        raise UserError(f"{lost}: {WAY_OUT}")
    if stopped:
        warnings.warn(
            f"the run in {folder} ended after step {stopped}, before its first checkpoint: it starts again from step 0",
            stacklevel=2,
        )


def _lost(folder: RunFolder, earlier: Config | None) -> tuple[str | None, int]:
    """What is gone, and the last step of a run that had nothing yet to go on from."""
    if earlier is None:
        return f"{folder} holds a run's metrics or checkpoints but no {CONFIG}, so it is not known what run", 0
    if saved_steps(folder):
        return None, 0
    last = max((row["step"] for row in metrics.read(folder)), default=0)
    if not _had_checkpoint(folder, earlier, last):
        return None, last
    return f"the run in {folder} has done {last or 'some'} steps, but {folder.file(CHECKPOINTS)} holds no checkpoint", 0


def saved_steps(folder: RunFolder) -> list[int]:
    """The steps that have a complete checkpoint, good or damaged. Reads names alone."""
    if not folder.exists(CHECKPOINTS):
        return []
    complete = "commit_success.txt" if folder.is_remote else ""  # an object store cannot rename a finished folder
    found = [each for each in folder.file(CHECKPOINTS).iterdir() if each.name.isdecimal()]
    return sorted(int(each.name) for each in found if (each / complete).exists())


def _had_checkpoint(folder: RunFolder, earlier: Config, last: int) -> bool:
    """Whether a checkpoint was ever complete. Runs of earlier versions left no mark of it, and say so: there, the start
    of a process after step 0, or metrics that reach the second save, which waits for the first, are signs of one.
    """
    if folder.exists(SAVED):
        return True
    environment = folder.read_json(ENVIRONMENT) if folder.exists(ENVIRONMENT) else {"starts": []}
    if last == 0 or "first_checkpoint" in environment:
        return False
    if not folder.is_remote and not folder.exists(CHECKPOINTS):
        return True  # it is made before the first step
    if any(start["step"] > 0 for start in environment["starts"]):
        return True
    return last >= min(2 * earlier.checkpoint.every, earlier.train.steps)
