"""A run that goes on for more steps, and its schedule: what works, what is refused, and the command to offer.

The learning rate of a step that was taken cannot change afterwards. So a longer run keeps its schedule, or takes one
that agrees with it on all steps up to a checkpoint, from which it goes on. A schedule that decays along the whole run
(WarmupCosine, LinearDecay) has no such successor; WarmupStableDecay has one, since the newest checkpoint before its
decay stays in the folder.
"""

from __future__ import annotations

import warnings

from gpt_jax.config import Config, LinearDecay, WarmupCosine, WarmupStableDecay
from gpt_jax.config.errors import UserError
from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.folder import RunFolder, Workdir
from gpt_jax.runs.load import run_config
from gpt_jax.runs.restart import put_aside, saved_steps
from gpt_jax.training.schedule import shared_steps, stable_steps

ENDING = (WarmupCosine, LinearDecay, WarmupStableDecay)  # they have a last step, after which the factor is `final`


def check_schedule(folder: RunFolder, old: Config, new: Config) -> None:
    """Looks at the learning rate of the steps that a longer run adds; both configurations are resolved.

    Warns where it stays at the small factor that the schedule has ended with.

    Raises:
      UserError: the added steps would have a learning rate of 0.
    """
    schedule, steps = new.schedule, new.train.steps
    if not isinstance(schedule, ENDING) or schedule.steps is None or steps <= schedule.steps:
        return
    ended = f"the schedule of the run in {folder} ends with step {schedule.steps}, so from there to step {steps}"
    advice = _advice(old, steps)
    if schedule.final == 0 and steps > old.train.steps:
        raise UserError(f"{ended} the learning rate would be 0: {advice}")
    warnings.warn(f"{ended} the learning rate is {schedule.final:g} times its maximum: {advice}", stacklevel=2)


def _advice(old: Config, steps: int) -> str:
    if isinstance(old.schedule, WarmupStableDecay):
        return f"set schedule.steps to {steps} as well, to go on from before the decay and to cool down anew"
    return (
        "a decay along the whole run cannot be continued: start a run in another folder with init_from set to this one,"
        " or plan the next one with schedule.type=WarmupStableDecay, which can be"
    )


def go_back(folder: RunFolder, old: Config, new: Config, checkpoints: Checkpoints) -> None:
    """Makes the checkpoint to go on from the newest one, if the schedule of the resolved configurations differs: the
    newest of which all updates had the learning rate that they have under the new schedule. Later ones are moved to
    `aside/`, with a copy of the metrics.

    Raises:
      UserError: there is no such checkpoint.
    """
    steps = checkpoints.steps()
    if old.schedule == new.schedule or not steps:
        return
    shared = shared_steps(old.schedule, new.schedule, steps[0])
    later = [step for step in steps if step > shared]
    if len(later) == len(steps):
        raise UserError(
            f"under the new schedule the learning rate of step {shared + 1} would have been another one, and"
            f" {folder} has no checkpoint up to step {shared}: take the schedule back, or start a run in another folder"
            " with init_from set to this one"
        )
    if later:
        place = put_aside(folder, later)
        checkpoints.forget(later)
        warnings.warn(
            f"goes back to step {steps[len(later)]}, where the new schedule parts from the old one; the checkpoints and"
            f" metrics after it are in {place}",
            stacklevel=2,
        )


def longer_command(workdir: Workdir) -> tuple[str, dict[str, str]]:
    """How to train a finished run for more steps: a title, and the flags that its command changes."""
    folder = RunFolder(workdir)
    resolved = run_config(folder)
    steps, schedule = resolved.train.steps, resolved.schedule
    twice = {"--config.train.steps": str(2 * steps)}
    if not isinstance(schedule, ENDING) or schedule.steps is None or 2 * steps <= schedule.steps:
        return "train longer", twice
    before = [step for step in saved_steps(folder) if step <= (stable_steps(schedule) or 0)]
    if before:
        title = f"train longer, from step {before[-1]:,}, before the decay"
        return title, twice | {"--config.schedule.steps": str(2 * steps)}
    if steps < schedule.steps:
        return "train to the end of the schedule", {"--config.train.steps": str(schedule.steps)}
    title = "train longer: the schedule has ended, so a new run begins with these parameters"
    return title, {"--workdir": f"{workdir}-longer", "--config.init_from": str(workdir)}
