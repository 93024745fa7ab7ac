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
from gpt_jax.config.foreign import well_formed
from gpt_jax.config.upgrade import upgraded
from gpt_jax.data import Data
from gpt_jax.runs.environment import git_revision, versions
from gpt_jax.runs.folder import CHECKPOINTS, CONFIG, ENVIRONMENT, METRICS, SAVED, RunFolder

# Settings that change no number, and that a suspicion makes one change.
WATCHING = ("watchdog", "recompute_every", "diagnostics", "suites")


class ConfigChanged(ConfigError):
    """The run folder holds a run of another configuration."""


def recorded(folder: RunFolder) -> tuple[Config, Config] | None:
    """The configuration of the run in a folder, as given and as resolved; None if no run has begun.

    Raises:
      ConfigError: the folder's config.json is not that of a run.
    """
    if not folder.exists(CONFIG):
        return None
    record = read_config(folder)
    return _config(folder, record["config"]), _config(folder, record["resolved"])


def read_config(folder: RunFolder) -> dict[str, Any]:
    """The content of `config.json` in today's spelling.

    Raises:
      MissingFile: the folder has none.
      ConfigError: it is not that of a run.
    """
    found = folder.read_json(CONFIG)
    with well_formed(folder.file(CONFIG)):
        record = upgraded(found) if isinstance(found, dict) else {}
    if not {"config", "resolved"} <= record.keys():
        raise ConfigError(
            f"{folder} holds no run: its {CONFIG} is another program's; if it is a published model, make a run of it"
            f" with `python -m experiments.convert --from={folder} --workdir=DIR` and give DIR"
        )
    return record


def _config(folder: RunFolder, values: Any) -> Config:
    with well_formed(folder.file(CONFIG)):
        return from_dict(Config, values)


def has_progress(folder: RunFolder) -> bool:
    """Whether the folder has, or once had, metrics or checkpoints, which a new run would overwrite."""
    if folder.exists(METRICS) or folder.exists(SAVED):
        return True
    return folder.exists(CHECKPOINTS) and any(folder.file(CHECKPOINTS).iterdir())


def check_resumable(folder: RunFolder, old: Config, new: Config, resume: bool) -> None:
    """Checks that the run of `old` in the folder may go on as `new`: `mesh` and the settings in `WATCHING` may
    differ, `train.steps` may grow, and if it does, `schedule` may differ (`runs/longer.py` says how far).

    Raises:
      ConfigChanged: something else differs; the message names it.
      UserError: `resume` is False.
    """
    if not resume:
        raise UserError(
            f"{folder} holds a run already: choose another --workdir, go on with it (--resume), or start again from"
            " step 0 with --restart, which moves it aside"
        )
    changes = difference(old, new)
    changes.pop("mesh", None)  # checkpoints hold whole arrays, whatever divided them
    for name in [key for key in changes if key.split(".")[0] in WATCHING]:
        changes.pop(name)
    if new.train.steps > old.train.steps:
        may_change = ("train.steps", "schedule.")
        changes = {key: pair for key, pair in changes.items() if not key.startswith(may_change)}
    if changes:
        shown = ", ".join(f"{key}: {before!r} → {after!r}" for key, (before, after) in changes.items())
        raise ConfigChanged(
            f"{folder} holds a run of another configuration ({shown}): choose another --workdir, or take the change"
            f" back (only train.steps may grow, the schedule with it, and mesh, {', '.join(WATCHING[:-1])} and"
            f" {WATCHING[-1]} may change)"
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
    environment["first_checkpoint"] = SAVED  # the file that says that there was one; earlier versions wrote none
    if has_progress(folder):
        check_data(folder, data)
        environment = read_environment(folder)
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


def read_environment(folder: RunFolder) -> dict[str, Any]:
    """The content of `environment.json`; that of a converted run has no `base`.

    Raises:
      MissingFile: the folder has none.
      UserError: it is damaged.
    """
    found = folder.read_json(ENVIRONMENT)
    if not (
        isinstance(found, dict)
        and isinstance(found.get("hashes"), dict)
        and all(isinstance(found["hashes"].get(name, 0), str | None) for name in ("data", "tokenizer"))
        and isinstance(found.get("starts"), list)
        and _is_base(found.get("base"))
    ):
        raise UserError(f"{folder.file(ENVIRONMENT)} is damaged: restore it from a backup, or start in another folder")
    return found


def _is_base(base: Any) -> bool:
    kinds = {"folder": str, "relative": str | None, "step": int, "fingerprint": str}
    return base is None or (
        isinstance(base, dict) and all(isinstance(base.get(name, b""), kind) for name, kind in kinds.items())
    )


def hashes(data: Data) -> dict[str, str]:
    """The hashes of the content of the data and of its tokenizer."""
    return {"data": data.content_hash, "tokenizer": data.tokenizer.content_hash()}


def check_data(folder: RunFolder, data: Data) -> None:
    """Raises UserError if the data differs from that of the run's first start. A converted run began without data."""
    began, here = read_environment(folder)["hashes"], hashes(data)
    if any(began[name] not in (None, here[name]) for name in here):
        raise UserError(
            f"the text or the tokenizer is not the one that the run in {folder} began with: restore it, or start in"
            " another folder"
        )
