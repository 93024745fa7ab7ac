"""Opening what a run left: its configuration and the model of a checkpoint; `load_run` for whoever wants the model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax.config import Config, has_adapter
from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt_jax.model.adapter import grafted, pruned, trainable
from gpt_jax.model.gpt import GPT
from gpt_jax.model.merge import merge_adapter
from gpt_jax.runs import record
from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.compilation import enable_compilation_cache
from gpt_jax.runs.folder import ENVIRONMENT, TOKENIZER, RunFolder
from gpt_jax.training.state import PARAMS

Workdir = str | os.PathLike[str]


class OpenedRun(NamedTuple):
    """A run's folder, its resolved configuration, and the model of a checkpoint with the step it is from and a
    fingerprint of its parameters.
    """

    folder: RunFolder
    config: Config
    model: GPT
    params: Any
    step: int
    fingerprint: str


class Base(NamedTuple):
    """What a run begins with: the model of another run's checkpoint, an adapter of its own merged into it.

    `record` is what the new run keeps of it: where it was, the step, and a fingerprint of its parameters.
    """

    folder: RunFolder
    model: GPT
    params: Any
    record: dict[str, Any]


def open_run(workdir: Workdir, step: int | None = None) -> OpenedRun:
    """As `load_run`, with all that the folder knows."""
    enable_compilation_cache()
    folder = RunFolder(workdir)
    config = run_config(folder)
    # Scanning is a choice of execution; per layer, names are canonical and decoding is faster.
    model = GPT(dataclasses.replace(config.model, scan=False))
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = pruned(trainable(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))))
    template = {
        PARAMS: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
    }
    with Checkpoints(folder, read_only=True) as checkpoints:
        restored = checkpoints.restore_newest(template) if step is None else checkpoints.restore(step, template)
        if restored is None:
            raise MissingFile(f"the run in {folder} has no checkpoint yet: wait for its first one")
        saved = checkpoints.saved_fingerprints(restored.step)[PARAMS]
    params = restored.trees[PARAMS]
    if has_adapter(config.model):
        base = reopen_base(folder, config)
        params, saved = grafted(base.params, params), saved | {"base": base.record["fingerprint"]}
    fingerprint = hashlib.sha256(json.dumps(saved, sort_keys=True).encode()).hexdigest()[:16]
    return OpenedRun(folder, config, model, params, restored.step, fingerprint)


def run_config(folder: RunFolder) -> Config:
    """The resolved configuration of the run in a folder.

    Raises:
      FileNotFoundError: there is none.
    """
    found = record.recorded(folder)
    if found is None:
        what = "there is no run in" if folder.exists() else "there is no folder"
        raise MissingFile(f"{what} {folder}: give the folder of a run")
    return found[1]


def load_run(workdir: Workdir, step: int | None = None) -> tuple[GPT, Any, Tokenizer]:
    """Model, parameters and tokenizer of a run, from its newest good checkpoint or from the one of `step`.

    Parameters have their per-layer names, and `model.config.scan` is False, whichever way the run was executed. A run
    that trained an adapter comes with it, and with the parameters of `init_from` (`merge_adapter` makes one of them).

    Raises:
      FileNotFoundError: there is no run, it has no checkpoint yet, or the run that it adapts is gone.
      ValueError: there is no checkpoint of `step`, or none that is undamaged; or the run that it adapts has changed.
    """
    opened = open_run(workdir, step)
    return opened.model, opened.params, load_tokenizer(opened.folder.file(TOKENIZER))


# ── what a run begins with ───────────────────────────────────────────────────────────────────────────────────────────


def open_base(init_from: str, config: Config, workdir: RunFolder) -> Base:
    """The newest good checkpoint of the run in `init_from`, for a new run of `config` in `workdir`."""
    return _base(open_run(init_from), config, workdir)


def reopen_base(workdir: RunFolder, config: Config) -> Base:
    """What the run in `workdir` began with.

    Raises:
      FileNotFoundError: it is neither where it was nor, from this run, in the same place.
      ValueError: it has changed since.
    """
    began = workdir.read_json(ENVIRONMENT)["base"]
    places = [began["folder"], *([] if began["relative"] is None else [str(workdir.path / began["relative"])])]
    place = next((place for place in places if record.recorded(RunFolder(place)) is not None), None)
    if place is None:
        raise MissingFile(
            f"the run in {workdir} begins with that of {began['folder']}, which is gone: put it back there"
        )
    base = _base(open_run(place, began["step"]), config, workdir)
    if base.record["fingerprint"] != began["fingerprint"]:
        raise UserError(
            f"the parameters of step {began['step']} in {place} are not those that the run in {workdir} began with: put"
            " them back, or start in another folder"
        )
    return base


def _base(opened: OpenedRun, config: Config, workdir: RunFolder) -> Base:
    """Merged, in the run's own type, with what is kept of it."""
    model, params = merge_adapter(opened.model, opened.params)
    params = jax.tree.map(lambda leaf: leaf.astype(config.model.param_dtype), params)
    remote = opened.folder.is_remote or workdir.is_remote
    kept = {
        "folder": str(opened.folder),
        "relative": None if remote else os.path.relpath(Path(opened.folder.path), Path(workdir.path)),
        "step": opened.step,
        "fingerprint": opened.fingerprint,
    }
    return Base(opened.folder, model, params, kept)
