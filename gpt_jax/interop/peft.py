"""Adapters in the format of Hugging Face's PEFT: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import dataclasses
import functools
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
from gpt_jax.config.foreign import read_json_object, shown
from gpt_jax.interop.family import TensorRow, plain
from gpt_jax.interop.hf import choose_family
from gpt_jax.interop.seal import is_sealed, sealed
from gpt_jax.interop.settings import TINY, check_tree, checked_number, checked_whole
from gpt_jax.interop.weights import StoredTensor, read_header, read_metadata, write_weights
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
    "alora_invocation_tokens": (None,),
    # Other ways to initialise an adapter change the model that it belongs to.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
NEEDED = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules")
# Keys that change no result once an adapter is trained.
HARMLESS = frozenset(
    """
    task_type base_model_name_or_path revision auto_mapping inference_mode fan_in_fan_out use_rslora peft_version
    exclude_modules layers_to_transform layers_pattern megatron_config megatron_core loftq_config eva_config
    corda_config lora_ga_config runtime_config qalora_group_size arrow_config ensure_weight_tying
    """.split()
)
OWN = ("r", "lora_alpha", "lora_dropout", "target_modules", "fan_in_fan_out")  # what our own files are sealed with
MOST_CONFIG = 16 << 20  # bytes of an adapter_config.json


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
    write_weights(out / WEIGHTS, entries, sealed({key: values[key] for key in OWN}))
    with writing(out / CONFIG):
        (out / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_adapter(folder: str | os.PathLike[str], model: GPT, params: Any) -> tuple[GPT, Any]:
    """Adds the adapter in a folder that PEFT or `save_adapter` wrote to a model.

    Returns the model with the adapter, and its parameters, layer by layer.

    Raises:
      MissingFile: there is no adapter in the folder.
      ConfigError: the adapter is of another kind or for another model, or `model` already has one.
      UserError: a file is damaged, or has changed since `save_adapter` wrote it.
    """
    path = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not os.path.lexists(path / name):
            raise MissingFile(f"{path / name} does not exist: give a folder that save_adapter or PEFT wrote")
    if has_adapter(model.config):
        raise ConfigError("this model has an adapter already: merge it first, with merge_adapter")
    values = read_json_object(path / CONFIG, MOST_CONFIG)
    adapter = _read_config(values, path / CONFIG)
    stored = read_header(path / WEIGHTS)
    if not is_sealed(read_metadata(path / WEIGHTS), {key: values[key] for key in OWN if key in values}):
        raise ConfigError(f"{path / CONFIG} has changed since gpt_jax wrote it: restore it")
    names, _ = _their_names(model.config)
    places = _places(path, stored, names, values)
    shapes, dtype = canonical_shapes(plain(model.config)), jnp.dtype(model.config.param_dtype)
    targets: dict[int, list[str]] = {}
    tree: dict[str, Any] = {}
    for (place, letter), name in places.items():
        inputs, outputs = shapes[f"{place}/kernel"]
        expected = (adapter.rank, inputs) if letter == "A" else (outputs, adapter.rank)
        if stored[name].shape != expected:
            raise ConfigError(f"{path} has {name} of shape {stored[name].shape}, and this model needs {expected}")
        if not jnp.issubdtype(stored[name].dtype, jnp.floating):
            raise ConfigError(f"{path} has {name} of type {stored[name].dtype}, which is none of weights")
        _, layer, below = place.split("/", 2)
        if letter == "A":
            targets.setdefault(int(layer), []).append(below)
        node = tree
        for part in (*place.split("/"), SCOPE, letter.lower()):
            node = node.setdefault(part, {})
        node["kernel"] = jnp.asarray(_transposed(stored[name].read()), dtype)
    blocks = tuple(
        dataclasses.replace(block, adapter=dataclasses.replace(adapter, targets=tuple(sorted(targets[layer]))))
        if layer in targets
        else block
        for layer, block in enumerate(model.config.blocks)
    )
    config = dataclasses.replace(model.config, blocks=blocks, scan=False)
    return GPT(config), grafted(canonical(params), {"params": tree})


def _places(
    path: Path, stored: Mapping[str, StoredTensor], names: Mapping[str, str | None], values: Mapping[str, Any]
) -> dict[tuple[str, str], str]:
    """Returns (path of a projection, "A" or "B") → the tensor, for the projections with the family's `names`.

    Raises ConfigError if a tensor has no place, is there twice, or lacks its other half, or if one that
    `target_modules` lists has none.
    """
    ours = {place.replace("/", "."): place for place in names} | {theirs: p for p, theirs in names.items() if theirs}
    found: dict[tuple[str, str], str] = {}
    modules = set()
    for name in stored:
        parts = re.fullmatch(rf"(?:{re.escape(PREFIX)})?(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        if parts is None or parts.group(1) not in ours:
            raise ConfigError(
                f"{path} adapts {name}, and this model has no such projection: give the model that it was trained on"
            )
        key = ours[parts.group(1)], parts.group(2)
        if key in found:
            raise ConfigError(f"{path} has {name} and {found[key]}, which are one tensor: remove one")
        found[key] = name
        modules.add(parts.group(1))
    for (place, letter), name in found.items():
        if (place, "B" if letter == "A" else "A") not in found:
            raise ConfigError(f"{path} has {name} without its other half: download it again")
    if not found:
        raise ConfigError(f"{path} holds no tensor of an adapter: download it again")
    targets = values["target_modules"]
    if isinstance(targets, str):
        return found  # an expression, which may take any time to match
    ends = tuple(f".{target}" for target in targets)
    partly = [key for key in ("exclude_modules", "layers_to_transform") if key in values and values[key]]
    kind = next(iter(modules)) in names.values()
    listed = {name for name in (names.values() if kind else ours) if name and f".{name}".endswith(ends)}
    stray = next(iter(modules - listed), None) or (None if partly else next(iter(listed - modules), None))
    if stray is not None:
        raise ConfigError(
            f'{path} has "target_modules": {shown(targets)}, which do not fit its tensors ({stray}): download it again'
        )
    return found


def _read_config(values: Mapping[str, Any], file: Path) -> Lora:
    """Returns the adapter of an adapter_config.json. Raises ConfigError for a key that gpt_jax cannot follow."""
    check_tree(values, file)
    for key in NEEDED:
        if key not in values:
            raise ConfigError(f'{file} lacks "{key}": download it again')
    if values["peft_type"] != "LORA":
        raise ConfigError(f"{file} is of peft_type {shown(values['peft_type'])}, and gpt_jax reads only LORA")
    for key, value in values.items():
        if key in NEUTRAL and value not in NEUTRAL[key]:
            raise ConfigError(f'{file} has "{key}": {shown(value)}, which gpt_jax does not support')
        if key not in (*NEUTRAL, *NEEDED, *HARMLESS) and value not in (None, False, "", [], {}):
            raise ConfigError(f'{file} has an unknown key "{key}": {shown(value)}, which gpt_jax does not support')
    targets = values["target_modules"]
    if not isinstance(targets, str) and not (
        isinstance(targets, list) and targets and all(isinstance(target, str) and target for target in targets)
    ):
        raise ConfigError(f'{file} has "target_modules": {shown(targets)}, which must be a list of names')
    rank, alpha = checked_whole("r", values["r"], 1), checked_number("lora_alpha", values["lora_alpha"], TINY)
    root = values["use_rslora"] if "use_rslora" in values else False
    if root not in (None, True, False):
        raise ConfigError(f'{file} has "use_rslora": {shown(root)}, which must be true or false')
    if root:
        alpha *= rank**0.5  # rsLoRA divides alpha by √r, not r (Kalajdzievski 2023, arXiv:2312.03732)
    dropout = checked_number("lora_dropout", values["lora_dropout"], 0, 1)
    return Lora(rank=rank, alpha=alpha, dropout=dropout, targets=("**",))


@functools.lru_cache(maxsize=8)
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
