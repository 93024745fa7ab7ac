"""Opens a finished or interrupted run: its configuration, and the model of one of its checkpoints.

`load_run` is the public function. A run that began with another one (`init_from`) is opened with that one's parameters.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from gpt_jax.config import Config, has_adapter
from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt_jax.model.adapter import grafted, pruned, trainable
from gpt_jax.model.gpt import GPT
from gpt_jax.model.merge import merge_adapter
from gpt_jax.model.shapes import parameter_shapes
from gpt_jax.runs import record
from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.compilation import enable_compilation_cache
from gpt_jax.runs.folder import ENVIRONMENT, TOKENIZER, RunFolder, Workdir
from gpt_jax.training.partition import shardings
from gpt_jax.training.sharding import make_mesh, shape_structs
from gpt_jax.training.state import PARAMS


class OpenedRun(NamedTuple):
    """An opened run: its resolved configuration and the model of one checkpoint.

    `params` have canonical names. `fingerprint` changes with any bit of them.
    """

    folder: RunFolder
    config: Config
    model: GPT
    params: Any
    step: int
    fingerprint: str


class Base(NamedTuple):
    """What a run begins with: the model of a checkpoint of another run, with that run's adapter merged in.

    `record` is stored in the new run's folder: the other run's folder, the step, and a fingerprint of the parameters.
    """

    folder: RunFolder
    model: GPT
    params: Any
    record: dict[str, Any]


def open_run(
    workdir: Workdir, step: int | None = None, mesh: Mesh | None = None, above: tuple[str, ...] = ()
) -> OpenedRun:
    """Opens a run as `load_run` does, with its folder, configuration, step and fingerprint.

    `above` are the folders of the runs that began with this one, none of which may be its own base.
    """
    enable_compilation_cache()
    folder = RunFolder(workdir)
    place = str(folder) if folder.is_remote else os.path.realpath(folder.path)
    if place in above:
        raise UserError(f"the run in {folder} began with itself, by its {ENVIRONMENT}: restore that file")
    config = run_config(folder)
    # Scanning changes no number; without it, names are canonical and decoding is faster.
    model = GPT(dataclasses.replace(config.model, scan=False))
    shapes = pruned(trainable(parameter_shapes(model.config)))
    alone = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    template = {PARAMS: shape_structs(shapes, alone if mesh is None else shardings(model.config, mesh, shapes))}
    with Checkpoints(folder, read_only=True) as checkpoints:
        restored = checkpoints.restore_newest(template) if step is None else checkpoints.restore(step, template)
        if restored is None:
            raise MissingFile(f"the run in {folder} has no checkpoint yet: wait for its first one")
    params, saved = restored.trees[PARAMS], restored.fingerprints[PARAMS]
    if has_adapter(config.model):
        base = reopen_base(folder, config, mesh, (*above, place))
        params, saved = grafted(base.params, params), saved | {"base": base.record["fingerprint"]}
    fingerprint = hashlib.sha256(json.dumps(saved, sort_keys=True).encode()).hexdigest()[:16]
    return OpenedRun(folder, config, model, params, restored.step, fingerprint)


def run_config(folder: RunFolder) -> Config:
    """The resolved configuration of the run in a folder.

    Raises:
      MissingFile: the folder holds no run.
    """
    found = record.recorded(folder)
    if found is None:
        what = "there is no run in" if folder.exists() else "there is no folder"
        raise MissingFile(f"{what} {folder}: give the folder of a run")
    return found[1]


def load_run(workdir: Workdir, step: int | None = None, *, mesh: str | None = None) -> tuple[GPT, Any, Tokenizer]:
    """Model, parameters and tokenizer of a run, from the checkpoint of `step` (None: from the newest good one).

    `mesh`, written as `Config.mesh` ("tensor=-1"), divides the parameters over all devices; None: one device has them.

    Parameters have per-layer names and `model.config.scan` is False, even if the run scanned its layers. The parameters
    of a run that trained an adapter include those of the run in `init_from`; `merge_adapter` merges the two.

    Raises:
      MissingFile: there is no run, it has no checkpoint yet, or the run that it adapts is gone.
      ConfigError: `mesh` is not well formed, or does not fit the number of devices.
      UserError: there is no checkpoint of `step`, all checkpoints are damaged, or the run that it adapts has changed.
    """
    opened = open_run(workdir, step, None if mesh is None else make_mesh(axes=mesh))
    return opened.model, opened.params, run_tokenizer(opened.folder)


def run_tokenizer(folder: RunFolder) -> Tokenizer:
    """The tokenizer that a run was trained with.

    Raises:
      MissingFile: it is gone.
      UserError: it is damaged, or another than the run recorded.
    """
    tokenizer = load_tokenizer(folder.file(TOKENIZER))
    if folder.exists(ENVIRONMENT):
        began = record.read_environment(folder)["hashes"]["tokenizer"]
        if began not in (None, tokenizer.content_hash()):
            raise UserError(f"the tokenizer in {folder} is not the one that the run began with: restore it")
    return tokenizer


# ── what a run begins with ───────────────────────────────────────────────────────────────────────────────────────────


def open_base(init_from: str, config: Config, workdir: RunFolder) -> Base:
    """The newest good checkpoint of the run in `init_from`, for a new run of `config` in `workdir`."""
    return _base(open_run(init_from), config, workdir)


def reopen_base(workdir: RunFolder, config: Config, mesh: Mesh | None = None, above: tuple[str, ...] = ()) -> Base:
    """What the run in `workdir` began with, found by its absolute path or by its path relative to `workdir`.

    Raises:
      MissingFile: it is in neither place.
      UserError: its parameters have changed.
    """
    began = record.read_environment(workdir).get("base")
    if began is None:
        raise UserError(f"{workdir.file(ENVIRONMENT)} does not say which run this one began with: restore the file")
    places = [began["folder"], *([] if began["relative"] is None else [str(workdir.path / began["relative"])])]
    place = next((place for place in places if record.recorded(RunFolder(place)) is not None), None)
    if place is None:
        raise MissingFile(
            f"the run in {workdir} began with the run in {began['folder']}, which is gone: put it back there"
        )
    base = _base(open_run(place, began["step"], mesh, above), config, workdir)
    if base.record["fingerprint"] != began["fingerprint"]:
        raise UserError(
            f"the parameters of step {began['step']} in {place} are not those that the run in {workdir} began with: put"
            " them back, or start in another folder"
        )
    return base


def _base(opened: OpenedRun, config: Config, workdir: RunFolder) -> Base:
    """The opened run with its adapter merged, its parameters in the type of `config`."""
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
