"""What a run folder says about its run: the configuration and what was derived from it, where it ran, what a checkpoint
holds.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from gpt_jax.config import Config
from gpt_jax.conversion import ConfigError, difference, from_dict, to_dict
from gpt_jax.data import Data
from gpt_jax.model.adapter import grafted, pruned, trained
from gpt_jax.model.gpt import GPT
from gpt_jax.model.stack import canonical, stacked
from gpt_jax.training.checkpoint import PARAMS, REST
from gpt_jax.training.schedule import resolve_schedule
from gpt_jax.training.step import TrainState, init_state
from gpt_jax.training.storage import CHECKPOINTS, CONFIG, ENVIRONMENT, METRICS, RunFolder

PACKAGES = ("gpt_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")


class ConfigChanged(ConfigError):
    """The run folder holds a run of another configuration."""


def resolve(config: Config, data: Data) -> Config:
    """The configuration with everything that it derives: the vocabulary's size, the data's seed, the schedule's length.

    Raises:
      ConfigError: a vocabulary that has no room for the tokenizer's ids.
    """
    size = data.vocab_size if config.model.vocab_size is None else config.model.vocab_size
    if size < data.vocab_size:
        raise ConfigError(f"model.vocab_size ({size}) is too small for the tokenizer's {data.vocab_size} ids: raise it")
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vocab_size=size),
        data=dataclasses.replace(config.data, seed=config.data_seed),  # type: ignore[type-var]
        schedule=resolve_schedule(config.schedule, config.train.steps),
    )


def recorded(folder: RunFolder) -> tuple[Config, Config] | None:
    """The configuration of the run in a folder, as it was given and as it was resolved; None where no run has begun."""
    if not folder.exists(CONFIG):
        return None
    record = folder.read_json(CONFIG)
    if not isinstance(record, dict) or not {"config", "resolved"} <= record.keys():
        raise ConfigError(
            f"{folder} is no run: its {CONFIG} is another program's; if it is a published model, make a run of it with"
            f" `python -m experiments.convert --from={folder} --workdir=DIR` and give DIR"
        )
    return from_dict(Config, record["config"]), from_dict(Config, record["resolved"])


def has_progress(folder: RunFolder) -> bool:
    """Whether there is anything in the folder that a new run would destroy."""
    return folder.exists(METRICS) or (folder.exists(CHECKPOINTS) and any(folder.file(CHECKPOINTS).iterdir()))


def lengthened(config: Config, steps: int) -> Config:
    """The same run to another number of steps; all that was derived from the old number stays."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))


def check_resumable(folder: RunFolder, old: Config, new: Config, resume: bool) -> None:
    """Refuses to go on with another configuration; only `train.steps` may grow.

    Raises:
      ConfigChanged: with the difference.
      ValueError: not `resume`.
    """
    if not resume:
        raise ValueError(
            f"{folder} holds a run already: choose another --workdir, delete it, or go on with it (--resume)"
        )
    changes = difference(old, new)
    if new.train.steps > old.train.steps:
        changes.pop("train.steps", None)
    if changes:
        shown = ", ".join(f"{key}: {before!r} → {after!r}" for key, (before, after) in changes.items())
        raise ConfigChanged(
            f"{folder} holds a run of another configuration ({shown}): choose another --workdir, or take the change"
            " back (train.steps alone may grow)"
        )


def write_config(folder: RunFolder, config: Config, resolved: Config) -> None:
    folder.write_json(CONFIG, {"config": to_dict(config), "resolved": to_dict(resolved)})


def record_start(folder: RunFolder, data: Data, step: int, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Adds this start to `environment.json` and returns its content: versions, devices, git revision, hashes of the
    data, and the `base` that a new run begins with.

    Raises:
      ValueError: the data is not what the run began with.
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
    return {"data": data.content_hash, "tokenizer": data.tokenizer.content_hash()}


def check_data(folder: RunFolder, data: Data) -> None:
    """Raises ValueError where the data is not what the run in the folder began with; one converted began with none."""
    began, here = folder.read_json(ENVIRONMENT)["hashes"], hashes(data)
    if any(began[name] not in (None, here[name]) for name in here):
        raise ValueError(
            f"the text or the tokenizer is not the one that the run in {folder} began with: restore it, or start in"
            " another folder"
        )


def versions() -> dict[str, str]:
    """Python's version and those of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_revision() -> str | None:
    """The commit of the checkout that this code lies in, with `+changes` where files differ from it; None outside of
    one.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


# ── what is in a checkpoint ──────────────────────────────────────────────────────────────────────────────────────────


def to_trees(state: TrainState) -> dict[str, Any]:
    """A state as the items of a checkpoint: the parameters that train under canonical names, and everything else as a
    flat dict of paths.
    """
    rest = canonical(
        {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != "params"}
    )
    return {
        PARAMS: pruned(canonical(trained(state.params))),
        REST: {_key(path): leaf for path, leaf in jax.tree.leaves_with_path(rest)},
    }


def from_trees(config: Config, trees: Mapping[str, Any], base: Any = None) -> TrainState:
    """Inverse of `to_trees`; `base` holds the parameters that don't train, under canonical names."""
    params = trees[PARAMS] if base is None else grafted(base, trees[PARAMS])
    shapes = jax.eval_shape(partial(init_state, GPT(config.model), config))
    fields = {field.name: getattr(shapes, field.name) for field in dataclasses.fields(shapes) if field.name != "params"}
    template = jax.eval_shape(canonical, fields)
    rest = jax.tree.map_with_path(lambda path, _: trees[REST][_key(path)], template)
    return TrainState(params=stacked(config.model, params), **stacked(config.model, rest))


def templates(config: Config, sharding: jax.sharding.Sharding) -> dict[str, Any]:
    """Shapes and types of the items of a checkpoint, placed by `sharding`."""
    trees = jax.eval_shape(lambda: to_trees(init_state(GPT(config.model), config)))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), trees)


def _key(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
