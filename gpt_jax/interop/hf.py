"""Loading and saving models in Hugging Face's format: folders with `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.config import Dtype, ModelConfig
from gpt_jax.config.disk import writing
from gpt_jax.config.errors import ConfigError, MissingFile, UserError, nearest
from gpt_jax.config.foreign import quoted, read_json_object, shown
from gpt_jax.data.tokenizer import Tokenizer, as_hugging_face, read_pretrained, write_pretrained
from gpt_jax.interop.account import CONFIG, account, check_copies, check_sizes, their_shape
from gpt_jax.interop.families import FAMILIES
from gpt_jax.interop.family import Family, TensorRow, plain
from gpt_jax.interop.normal import differences, normal_form, without_dropout
from gpt_jax.interop.seal import check_config, sealed
from gpt_jax.interop.settings import check_tree
from gpt_jax.interop.weights import WEIGHTS, Tensor, open_weights, write_weights
from gpt_jax.model.gpt import GPT
from gpt_jax.model.paths import path_of
from gpt_jax.model.shapes import canonical_shapes
from gpt_jax.model.stack import canonical

MOST_CONFIG = 16 << 20  # bytes of a config.json


def load_pretrained(
    folder: str | Path, dtype: Dtype = "float32", ignore: Collection[str] = ()
) -> tuple[GPT, Any, Tokenizer | None]:
    """Loads a model from a Hugging Face folder, or from a GGUF file, whose tensors are dequantized.

    Args:
      folder: the folder or GGUF file.
      dtype: of parameters and computation, regardless of the types in the files.
      ignore: keys of config.json to treat as absent, and globs (`model.paths.matches`) of tensors to skip.

    Returns:
      The model, its parameters, and its tokenizer (None if there is no tokenizer.json).

    Raises:
      MissingFile: there is no such folder, or it has no weights.
      ConfigError: an unknown `dtype`, or a family or setting that gpt_jax does not have.
      UserError: a tensor is missing, has no place in the model or has the wrong shape, or a file is damaged.
    """
    if dtype not in get_args(Dtype):
        raise ConfigError(f"dtype must be one of {', '.join(get_args(Dtype))}, not {dtype!r}")
    if str(folder).endswith(".gguf"):
        from gpt_jax.interop.gguf import open_gguf

        values, stored, tokenizer = open_gguf(folder, ignore)
    else:
        path = _existing(folder)
        values, tokenizer = _read_config(path / CONFIG), read_pretrained(path, ignore)
        stored = open_weights(path)
        check_config(values, path, ignore)
    family, config = read_model(values, stored, ignore)
    model = GPT(replace(config, dtype=dtype, param_dtype=dtype))
    return model, _read_params(family, model.config, stored, tuple(ignore)), tokenizer


def read_model(
    values: Mapping[str, Any], stored: Mapping[str, Tensor], ignore: Collection[str] = ()
) -> tuple[Family, ModelConfig]:
    """Returns the family and the model of the `values` of a config.json beside the tensors `stored`.

    Raises:
      ConfigError: a family or setting that gpt_jax does not have, or sizes beyond what the tensors hold.
    """
    family = family_of(values)
    settings = family.settings(values, ignore)
    check_sizes(settings, stored)
    config = family.read(settings)
    settings.refuse_unknown()
    return family, config


def save_pretrained(
    folder: str | Path, model: GPT, params: Any, tokenizer: Tokenizer | None = None, family: str | None = None
) -> None:
    """Writes a folder that `load_pretrained` and `transformers` can load.

    It has `config.json`, `model.safetensors` and, with a tokenizer, `tokenizer.json` and the files that name its stop
    tokens. Tensors keep the type of the parameters.

    Args:
      folder: where to write.
      model: the model.
      params: its parameters.
      tokenizer: its tokenizer, if any.
      family: the `model_type` to write; None chooses the first family that can represent the model.

    Raises:
      ConfigError: no family, or not the one named, can represent the model.
      UserError: `params` are not parameters of `model`, or the tokenizer cannot be written as a `tokenizer.json`.
    """
    chosen, values = choose_family(model.config, family)
    tokenizer = None if tokenizer is None else as_hugging_face(tokenizer)
    leaves = {path_of(keys): leaf for keys, leaf in jax.tree.leaves_with_path(canonical(params))}
    shapes = canonical_shapes(plain(model.config))
    for path in leaves.keys() | shapes.keys():
        given = leaves[path].shape if path in leaves else None
        if path not in shapes or given != shapes[path]:
            wanted = f"needs the shape {shapes[path]}" if path in shapes else "has no such parameter"
            raise UserError(
                f"the parameters have {path} of shape {given}, and the model {wanted}: pass this model's parameters"
            )
    dtype = np.dtype(next(iter(leaves.values())).dtype)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def tensor(row: TensorRow) -> np.ndarray:
        return row.write(*(np.asarray(leaves[path]) for path in row.ours))

    entries: dict[str, Any] = {}
    for row in chosen.rows(model.config):
        shape = their_shape(row, shapes)
        if row.count is None:
            entries[row.theirs] = dtype, shape, partial(tensor, row)
        for i, name in enumerate(row.names if row.count is not None else ()):
            entries[name] = dtype, shape[1:], lambda row=row, i=i: tensor(row)[i]
    write_weights(folder / WEIGHTS, entries, sealed(values | {"model_type": chosen.model_type}))
    if tokenizer is not None:
        write_pretrained(tokenizer, folder)
    end = None if tokenizer is None else tokenizer.end_of_text
    ids = {"bos_token_id": None, "eos_token_id": end, "pad_token_id": None}
    head = {"architectures": [chosen.architecture], "model_type": chosen.model_type, "dtype": dtype.name}
    with writing(folder / CONFIG):
        (folder / CONFIG).write_text(json.dumps(head | ids | values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def family_of(values: Mapping[str, Any]) -> Family:
    """Returns the family that the `values` of a config.json name.

    Raises:
      ConfigError: gpt_jax does not have it.
    """
    if "model_type" not in values:
        raise ConfigError(f'{CONFIG} has no "model_type": give a folder that transformers saved')
    name = str(values["model_type"])[:200]
    experts = [key for key, value in values.items() if "expert" in key and value not in (None, False, 0, 1)]
    if experts or "moe" in name.split("_"):
        which = f' ("{experts[0]}": {shown(values[experts[0]])})' if experts else ""
        raise ConfigError(f"the model_type {quoted(name)} is a mixture of experts{which}, which gpt_jax does not read")
    if values.get("is_encoder_decoder"):
        raise ConfigError(f"the model_type {quoted(name)} has an encoder, and gpt_jax reads only decoders")
    if values.get("quantization_config"):
        raise ConfigError(
            f'{CONFIG} has a "quantization_config", which gpt_jax does not read: save the model dequantized first'
        )
    if name not in FAMILIES:
        inside = [key for key in ("vision_config", "audio_config", "text_config") if key in values]
        more = f" (it has a {inside[0]}, and gpt_jax reads only text models)" if inside else ""
        raise ConfigError(f"gpt_jax does not read the model_type {quoted(name)}{more}{nearest(name, FAMILIES)}")
    return FAMILIES[name]


def choose_family(model: ModelConfig, name: str | None = None) -> tuple[Family, dict[str, Any]]:
    """Returns the family to write a model as, and its settings in config.json.

    Raises:
      ConfigError: no family, or not the one called `name`, can represent the model. The message says what the nearest
        one lacks.
    """
    if name is not None and name not in FAMILIES:
        raise ConfigError(f'there is no family "{name}"{nearest(name, FAMILIES)}')
    wanted = normal_form(model)
    misses: dict[str, list[str]] = {}
    for family in FAMILIES.values() if name is None else [FAMILIES[name]]:
        try:
            values = family.write(wanted)
            found = normal_form(family.read(family.settings(values)))
        except ConfigError as error:
            misses.setdefault(family.model_type, [str(error)] * 99)
            continue
        lost = differences(without_dropout(wanted), without_dropout(found))
        if not lost:
            return family, values
        misses[family.model_type] = [f"{key} {value!r}" for key, value in lost.items()]
    best = min(misses, key=lambda name: len(misses[name]))
    reason = "; ".join(dict.fromkeys(misses[best][:3]))
    raise ConfigError(
        f"no family of published models can represent this model: the nearest, {best}, lacks {reason}"
        if name is None
        else f"{name} cannot represent this model: it lacks {reason}"
    )


def _existing(folder: str | Path) -> Path:
    path = Path(folder)
    if path.is_dir():
        if not os.path.lexists(path / CONFIG):
            others = sorted(path.glob("*.gguf"))
            instead = f"the file {others[0]} in it" if others else "a folder that transformers saved"
            raise MissingFile(f"{path} has no {CONFIG}: give {instead}")
        return path
    name = str(folder)
    on_hub = re.fullmatch(r"(?:https?://[^/]+/)?((?:[\w.-]+/)?([\w-][\w.-]*))/?", name)
    if on_hub and not path.exists():
        whole, local = on_hub.groups()
        raise MissingFile(
            f"there is no folder {name}: if it is a name on the Hugging Face Hub, download it with"
            f" `hf download {whole} --local-dir {local}` and give {local}"
        )
    raise MissingFile(f"there is no folder {name}: give one with {CONFIG} and {WEIGHTS}")


def _read_config(file: Path) -> dict[str, Any]:
    values = read_json_object(file, MOST_CONFIG)
    check_tree(values, file)
    return values


def _read_params(family: Family, model: ModelConfig, stored: Mapping[str, Tensor], ignore: tuple[str, ...]) -> Any:
    """Reads the parameters of `model`, the largest first, while there is most room for temporary copies."""
    shapes, rows = canonical_shapes(plain(model)), family.rows(model)
    newer = {_newer(family, name): place for name, place in stored.items()}
    if len(newer) < len(stored):
        raise UserError("the weights have a tensor under its older and its newer name: remove one of them")
    stored = newer
    if not any(name.startswith(family.prefix) for name in stored):  # saved without a head
        heads = {name for row in rows for name in row.names if not name.startswith(family.prefix)} | {*family.copies}
        stored = {name if name in heads else family.prefix + name: place for name, place in stored.items()}
    account(family, model, rows, stored, shapes, ignore)
    params: dict[str, Any] = {}

    def tensor(row: TensorRow) -> np.ndarray:
        parts = [stored[name].read() for name in row.names]
        return parts[0] if row.count is None else np.stack(parts)

    for row in sorted(rows, key=lambda row: -int(np.prod(stored[row.names[0]].shape))):
        for path, value in zip(row.ours, row.read(tensor(row)), strict=True):
            node = params
            *groups, leaf = path.split("/")
            for group in groups:
                node = node.setdefault(group, {})
            assert value.shape == shapes[path], f"{row.theirs} gives {path} of shape {value.shape}, not {shapes[path]}"
            node[leaf] = jnp.asarray(np.asarray(value, jnp.dtype(model.param_dtype), order="C")).block_until_ready()
            del value
    check_copies(family, rows, stored)
    return {"params": params}


def _newer(family: Family, name: str) -> str:
    """Returns the name that a tensor of an older file has today."""
    for old, new in family.renamed.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
