"""Adapters in the format of Hugging Face's PEFT: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.config import Lora, ModelConfig, has_adapter
from gpt_jax.config.disk import writing
from gpt_jax.config.errors import ConfigError, MissingFile
from gpt_jax.interop.family import TensorRow, plain
from gpt_jax.interop.hf import choose_family
from gpt_jax.interop.weights import read_header, write_weights
from gpt_jax.model.adapter import SCOPE, grafted, projections, trainable, without_adapter
from gpt_jax.model.gpt import GPT
from gpt_jax.model.paths import path_of
from gpt_jax.model.shapes import canonical_shapes, parameter_shapes
from gpt_jax.model.stack import canonical

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Keys of PEFT for features that gpt_jax does not have → the values that switch them off.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
    "lora_bias": (False, None),
    "trainable_token_indices": (None,),
    "layer_replication": (None,),
    "target_parameters": (None, []),
}


def save_adapter(folder: str | os.PathLike[str], model: GPT, params: Any, base: str = "") -> None:
    """Writes the adapter of `model`, without the model.

    Projections get the names of the family that `save_pretrained` would write, for `peft.PeftModel.from_pretrained`. If
    no family can represent the model, they get the names of our paths, for `load_adapter`.

    Args:
      folder: where to write.
      model: a model with an adapter.
      params: its parameters.
      base: the folder, or the name on the Hugging Face Hub, of the model that it adapts.

    Raises:
      ConfigError: the model has no adapter, its layers differ in rank, alpha or dropout, or the family stores an
        adapted projection in one tensor with others.
    """
    if not has_adapter(model.config):
        raise ConfigError("this model has no adapter: give one that was trained with model.adapter")
    adapters = [block.adapter for block in model.config.blocks if isinstance(block.adapter, Lora)]
    kinds = {dataclasses.replace(adapter, targets=("**",)) for adapter in adapters}
    if len(kinds) > 1:
        raise ConfigError(
            "the adapters of the layers differ in rank, alpha or dropout, and a PEFT folder has one of each"
        )
    (adapter,) = kinds
    names, is_transposed = _their_names(without_adapter(model.config))
    leaves = {path_of(keys): leaf for keys, leaf in jax.tree.leaves_with_path(trainable(canonical(params)))}
    modules, entries = [], {}
    for path in projections(canonical(params)):
        theirs = names[path]
        if theirs is None:
            raise ConfigError(f"{path} shares a tensor with others in this family, so PEFT cannot adapt it alone")
        modules.append(theirs)
        for letter in ("a", "b"):
            leaf = leaves[f"{path}/{SCOPE}/{letter}/kernel"]
            entry = (np.dtype(leaf.dtype), leaf.shape[::-1], partial(_transposed, leaf))
            entries[f"{PREFIX}{theirs}.lora_{letter.upper()}.weight"] = entry
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    write_weights(out / WEIGHTS, entries)
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": sorted(modules),
        "fan_in_fan_out": not is_transposed,
        "bias": "none",
        "inference_mode": True,
    }
    with writing(out / CONFIG):
        (out / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_adapter(folder: str | os.PathLike[str], model: GPT, params: Any) -> tuple[GPT, Any]:
    """Adds the adapter in a folder that PEFT or `save_adapter` wrote to a model.

    Returns the model with the adapter, and its parameters, layer by layer.

    Raises:
      MissingFile: there is no adapter in the folder.
      ConfigError: the adapter is of another kind or for another model, or `model` already has one.
    """
    path = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (path / name).exists():
            raise MissingFile(f"{path / name} does not exist: give a folder that save_adapter or PEFT wrote")
    if has_adapter(model.config):
        raise ConfigError("this model has an adapter already: merge it first, with merge_adapter")
    adapter = _read_config(path / CONFIG)
    names, _ = _their_names(model.config)
    ours = {path.replace("/", "."): path for path in names} | {theirs: p for p, theirs in names.items() if theirs}
    shapes, dtype = canonical_shapes(plain(model.config)), jnp.dtype(model.config.param_dtype)
    targets: dict[int, list[str]] = {}
    tree: dict[str, Any] = {}
    for name, stored in read_header(path / WEIGHTS).items():
        found = re.fullmatch(rf"(?:{re.escape(PREFIX)})?(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        if found is None or found.group(1) not in ours:
            raise ConfigError(
                f"{path} adapts {name}, and this model has no such projection: give the model that it was trained on"
            )
        place, letter = ours[found.group(1)], found.group(2)
        inputs, outputs = shapes[f"{place}/kernel"]
        expected = (adapter.rank, inputs) if letter == "A" else (outputs, adapter.rank)
        if stored.shape != expected:
            raise ConfigError(f"{path} has {name} of shape {stored.shape}, and this model needs {expected}")
        _, layer, below = place.split("/", 2)
        if letter == "A":
            targets.setdefault(int(layer), []).append(below)
        node = tree
        for part in (*place.split("/"), SCOPE, letter.lower()):
            node = node.setdefault(part, {})
        node["kernel"] = jnp.asarray(_transposed(stored.read()), dtype)
    blocks = tuple(
        dataclasses.replace(block, adapter=dataclasses.replace(adapter, targets=tuple(sorted(targets[layer]))))
        if layer in targets
        else block
        for layer, block in enumerate(model.config.blocks)
    )
    config = dataclasses.replace(model.config, blocks=blocks, scan=False)
    return GPT(config), grafted(canonical(params), {"params": tree})


def _read_config(file: Path) -> Lora:
    values: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if values["peft_type"] != "LORA":
        raise ConfigError(f'{file} is of peft_type "{values["peft_type"]}", and gpt_jax reads only LORA')
    for key, neutral in NEUTRAL.items():
        if key in values and values[key] not in neutral:
            raise ConfigError(f'{file} has "{key}": {values[key]!r}, which gpt_jax does not support')
    rank, alpha = int(values["r"]), float(values["lora_alpha"])
    if "use_rslora" in values and values["use_rslora"]:
        alpha *= rank**0.5  # rsLoRA divides alpha by √r, not r (Kalajdzievski 2023, arXiv:2312.03732)
    return Lora(rank=rank, alpha=alpha, dropout=float(values["lora_dropout"]), targets=("**",))


def _their_names(model: ModelConfig) -> tuple[dict[str, str | None], bool]:
    """Returns our path → the family's name of each projection, and whether the family's kernels are (outputs, inputs).

    The name is None if the projection shares a tensor with others. If no family can represent the model, the names are
    our paths with dots.
    """
    everywhere = tuple(dataclasses.replace(block, adapter=Lora(rank=1, targets=("**",))) for block in model.blocks)
    paths = projections(parameter_shapes(dataclasses.replace(model, blocks=everywhere, scan=False)))
    try:
        family, _ = choose_family(model)
    except ConfigError:
        return {path: path.replace("/", ".") for path in paths}, True
    rows = {path: row for row in family.rows(model) for path in row.ours}
    found = {path: _orientation(rows[f"{path}/kernel"]) for path in paths}
    names = {
        path: rows[f"{path}/kernel"].theirs.removesuffix(".weight") if turned is not None else None
        for path, turned in found.items()
    }
    return names, any(found.values())


def _orientation(row: TensorRow) -> bool | None:
    """Returns True if the tensor is our kernel transposed, False if it is our kernel unchanged, and None otherwise."""
    if len(row.ours) > 1 or row.count is not None:
        return None
    probe = np.arange(6.0).reshape(2, 3)
    try:
        theirs = row.write(probe)
    except ValueError:  # a row that reshapes its kernel into heads
        return None
    if theirs.shape == (3, 2) and np.array_equal(theirs, probe.T):
        return True
    return False if theirs.shape == (2, 3) and np.array_equal(theirs, probe) else None


def _transposed(x: Any) -> np.ndarray:
    return np.asarray(x).T
