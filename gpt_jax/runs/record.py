"""What a run folder records of its run: the configuration, as given and as resolved, and each start with its versions,
devices and hashes of the data.
"""

from __future__ import annotations

import platform
import sys
import time
import uuid
from collections.abc import Mapping
from typing import Any

import jax

from gpt_jax.config import Config
from gpt_jax.config.conversion import difference, from_dict, to_dict
from gpt_jax.config.errors import ConfigError, UserError
from gpt_jax.config.upgrade import upgraded
from gpt_jax.data import Data
from gpt_jax.runs.environment import git_revision, versions
from gpt_jax.runs.folder import CHECKPOINTS, CONFIG, ENVIRONMENT, METRICS, RunFolder

WATCHING = ("watchdog", "recompute_every")  # settings that change no number, and that a suspicion makes one change


class ConfigChanged(ConfigError):
    """The run folder holds a run of another configuration."""


def recorded(folder: RunFolder) -> tuple[Config, Config] | None:
    """The configuration of the run in a folder, as given and as resolved; None if no run has begun.

    Raises:
      ConfigError: the folder's config.json is not that of a run.
    """
    if not folder.exists(CONFIG):
        return None
    record = upgraded(folder.read_json(CONFIG))
    if not isinstance(record, dict) or not {"config", "resolved"} <= record.keys():
        raise ConfigError(
            f"{folder} holds no run: its {CONFIG} is another program's; if it is a published model, make a run of it"
            f" with `python -m experiments.convert --from={folder} --workdir=DIR` and give DIR"
        )
    return from_dict(Config, record["config"]), from_dict(Config, record["resolved"])


def has_progress(folder: RunFolder) -> bool:
    """Whether the folder has metrics or checkpoints, which a new run would overwrite."""
    return folder.exists(METRICS) or (folder.exists(CHECKPOINTS) and any(folder.file(CHECKPOINTS).iterdir()))


def check_resumable(folder: RunFolder, old: Config, new: Config, resume: bool) -> None:
    """Checks that the run of `old` in the folder may go on as `new`: `mesh`, `watchdog` and `recompute_every` may
    differ, and `train.steps` may grow.

    Raises:
      ConfigChanged: something else differs; the message names it.
      UserError: `resume` is False.
    """
    if not resume:
        raise UserError(
            f"{folder} holds a run already: choose another --workdir, delete it, or go on with it (--resume)"
        )
    changes = difference(old, new)
    changes.pop("mesh", None)  # checkpoints hold whole arrays, whatever divided them
    for name in [key for key in changes if key.split(".")[0] in WATCHING]:
        changes.pop(name)
    if new.train.steps > old.train.steps:
        changes.pop("train.steps", None)
    if changes:
        shown = ", ".join(f"{key}: {before!r} → {after!r}" for key, (before, after) in changes.items())
        raise ConfigChanged(
            f"{folder} holds a run of another configuration ({shown}): choose another --workdir, or take the change"
            " back (only train.steps may grow, and mesh, watchdog and recompute_every may change)"
        )


def write_config(folder: RunFolder, config: Config, resolved: Config) -> None:
    """Writes `config.json`, which `recorded` reads."""
    folder.write_json(CONFIG, {"config": to_dict(config), "resolved": to_dict(resolved)})


def record_start(folder: RunFolder, data: Data, step: int, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Adds this start, after `step` updates, to `environment.json`, and returns the content of that file: versions,
    devices and git revision of each start, the hashes of the data, and the `base` that the run began with.

    Raises:
      UserError: the data differs from that of the run's first start.
    """
    environment: dict[str, Any] = {"id": uuid.uuid4().hex[:12], "hashes": hashes(data), "base": base, "starts": []}
    if has_progress(folder):
        check_data(folder, data)
        environment = folder.read_json(ENVIRONMENT)
    devices = jax.devices()
    environment["starts"].append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "step": step,
            "command": sys.argv,
            "git": git_revision(),
            "versions": versions(),
            "platform": platform.platform(),
            "devices": {"kind": devices[0].device_kind, "count": len(devices), "processes": jax.process_count()},
        }
    )
    folder.write_json(ENVIRONMENT, environment)
    return environment


def hashes(data: Data) -> dict[str, str]:
    """The hashes of the content of the data and of its tokenizer."""
    return {"data": data.content_hash, "tokenizer": data.tokenizer.content_hash()}


def check_data(folder: RunFolder, data: Data) -> None:
    """Raises UserError if the data differs from that of the run's first start. A converted run began without data."""
    began, here = folder.read_json(ENVIRONMENT)["hashes"], hashes(data)
    if any(began[name] not in (None, here[name]) for name in here):
        raise UserError(
            f"the text or the tokenizer is not the one that the run in {folder} began with: restore it, or start in"
            " another folder"
        )
