"""Folders in Hugging Face's form, `config.json` beside `model.safetensors`, as our models, and ours as such folders."""

from __future__ import annotations

import json
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
from gpt_jax.config.errors import ConfigError, MissingFile, UserError, nearest
from gpt_jax.data.tokenizer import Tokenizer, as_hugging_face, read_pretrained, write_pretrained
from gpt_jax.interop.families import FAMILIES
from gpt_jax.interop.family import Family, Row, parameter_shapes, plain
from gpt_jax.interop.normal import differences, normal, without_dropout
from gpt_jax.interop.weights import WEIGHTS, Tensor, open_weights, write_weights
from gpt_jax.model.gpt import GPT
from gpt_jax.model.paths import matches, path_of
from gpt_jax.model.stack import canonical

CONFIG = "config.json"


def load_pretrained(
    folder: str | Path, dtype: Dtype = "float32", ignore: Collection[str] = ()
) -> tuple[GPT, Any, Tokenizer | None]:
    """Model, parameters and tokenizer (None where there is no tokenizer.json) of a folder in Hugging Face's form, or of
    a GGUF file, whose tensors are dequantized.

    Parameters and arithmetic are of `dtype`, whatever the files hold. `ignore` names keys of config.json to read as
    though they were absent, and tensors (globs of `model.paths.matches`) that need no place.

    Raises:
      ConfigError: another `dtype`.
      FileNotFoundError: no folder, or no weights in it.
      ValueError: a family or setting that gpt_jax doesn't have, a tensor without a place, a place without its tensor, a
        wrong shape, or a damaged file.
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
    family = family_of(values)
    settings = family.settings(values, ignore)
    config = family.read(settings)
    settings.refuse_unknown()
    model = GPT(replace(config, dtype=dtype, param_dtype=dtype))
    return model, _read_params(family, model.config, stored, tuple(ignore)), tokenizer


def save_pretrained(
    folder: str | Path, model: GPT, params: Any, tokenizer: Tokenizer | None = None, family: str | None = None
) -> None:
    """Writes `config.json`, `model.safetensors` and, for a tokenizer, `tokenizer.json` and what says which tokens
    end a text: a folder that `load_pretrained` and `transformers` open.

    `family` is a `model_type`; None chooses the first that has all that the model does. Tensors keep the parameters'
    type.

    Raises:
      ValueError: no family, or not the one that was named, has all that the model does; or the tokenizer has no such
        form.
    """
    chosen, values = choose_family(model.config, family)
    tokenizer = None if tokenizer is None else as_hugging_face(tokenizer)
    leaves = {path_of(keys): leaf for keys, leaf in jax.tree.leaves_with_path(canonical(params))}
    shapes = parameter_shapes(plain(model.config))
    for path in leaves.keys() | shapes.keys():
        given = leaves[path].shape if path in leaves else None
        if path not in shapes or given != shapes[path]:
            wanted = f"needs the shape {shapes[path]} there" if path in shapes else "has no such parameter"
            raise UserError(f"the parameters have {path} of shape {given}, and the model {wanted}: are they its own?")
    dtype = np.dtype(next(iter(leaves.values())).dtype)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def tensor(row: Row) -> np.ndarray:
        return row.write(*(np.asarray(leaves[path]) for path in row.ours))

    entries: dict[str, Any] = {}
    for row in chosen.rows(model.config):
        shape = _their_shape(row, shapes)
        if row.count is None:
            entries[row.theirs] = dtype, shape, partial(tensor, row)
        for i, name in enumerate(row.names if row.count is not None else ()):
            entries[name] = dtype, shape[1:], lambda row=row, i=i: tensor(row)[i]
    write_weights(folder / WEIGHTS, entries)
    if tokenizer is not None:
        write_pretrained(tokenizer, folder)
    end = None if tokenizer is None else tokenizer.end_of_text
    ids = {"bos_token_id": None, "eos_token_id": end, "pad_token_id": None}
    head = {"architectures": [chosen.architecture], "model_type": chosen.model_type, "dtype": dtype.name}
    (folder / CONFIG).write_text(json.dumps(head | ids | values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def family_of(values: Mapping[str, Any]) -> Family:
    """The family that a config.json names.

    Raises:
      ConfigError: it is none of ours.
    """
    if "model_type" not in values:
        raise ConfigError(f'{CONFIG} has no "model_type": gpt_jax reads folders that transformers saved')
    name = str(values["model_type"])
    experts = [key for key, value in values.items() if "expert" in key and value not in (None, False, 0, 1)]
    if experts or "moe" in name.split("_"):
        which = f' ("{experts[0]}": {values[experts[0]]})' if experts else ""
        raise ConfigError(f'the model_type "{name}" is a mixture of experts{which}, and gpt_jax has none')
    if values.get("is_encoder_decoder"):
        raise ConfigError(f'the model_type "{name}" has an encoder, and gpt_jax has decoders alone')
    if values.get("quantization_config"):
        raise ConfigError(
            f'{CONFIG} has a "quantization_config": gpt_jax reads plain weights, so save the model dequantized first'
        )
    if name not in FAMILIES:
        inside = [key for key in ("vision_config", "audio_config", "text_config") if key in values]
        more = f" (it has a {inside[0]}: gpt_jax reads models of text alone)" if inside else ""
        raise ConfigError(f'the model_type "{name}" is none that gpt_jax reads{more}{nearest(name, FAMILIES)}')
    return FAMILIES[name]


def choose_family(model: ModelConfig, name: str | None = None) -> tuple[Family, dict[str, Any]]:
    """The family to write a model as, and its settings there.

    Raises:
      ConfigError: none has all that the model does; the message says what the nearest one lacks.
    """
    if name is not None and name not in FAMILIES:
        raise ConfigError(f'there is no family "{name}"{nearest(name, FAMILIES)}')
    wanted = normal(model)
    misses: dict[str, list[str]] = {}
    for family in FAMILIES.values() if name is None else [FAMILIES[name]]:
        try:
            values = family.write(wanted)
            found = normal(family.read(family.settings(values)))
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
        f"no family of published models has all that this one does: the nearest, {best}, lacks {reason}"
        if name is None
        else f"{name} can't be this model: it lacks {reason}"
    )


def _existing(folder: str | Path) -> Path:
    path = Path(folder)
    if path.is_dir():
        if not (path / CONFIG).exists():
            others = sorted(path.glob("*.gguf"))
            instead = f"the file {others[0]} in it" if others else "a folder that transformers saved"
            raise MissingFile(f"{path} has no {CONFIG}: give {instead}")
        return path
    name = str(folder)
    on_hub = re.fullmatch(r"(?:https?://[^/]+/)?((?:[\w.-]+/)?([\w-][\w.-]*))/?", name)
    if on_hub and not path.exists():
        whole, local = on_hub.groups()
        raise MissingFile(
            f"{name} is no folder here; if it is a name on the Hugging Face Hub, download it with"
            f" `hf download {whole} --local-dir {local}` and give {local}"
        )
    raise MissingFile(f"{name} is no folder: give one with {CONFIG} and {WEIGHTS}")


def _read_config(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no settings")
    return values


def _read_params(family: Family, model: ModelConfig, stored: Mapping[str, Tensor], ignore: tuple[str, ...]) -> Any:
    """Every parameter of `model`, each from its tensor; the largest first, while there is room for its copies."""
    shapes, rows = parameter_shapes(plain(model)), family.rows(model)
    stored = {_newer(family, name): place for name, place in stored.items()}
    if not any(name.startswith(family.prefix) for name in stored):  # saved without a head
        heads = {name for row in rows for name in row.names if not name.startswith(family.prefix)} | {*family.copies}
        stored = {name if name in heads else family.prefix + name: place for name, place in stored.items()}
    _account(family, model, rows, stored, shapes, ignore)
    params: dict[str, Any] = {}

    def tensor(row: Row) -> np.ndarray:
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
    _check_copies(family, rows, stored)
    return {"params": params}


def _account(
    family: Family,
    model: ModelConfig,
    rows: tuple[Row, ...],
    stored: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    ignore: tuple[str, ...],
) -> None:
    """Refuses a tensor that has no place, a place that has no tensor, and a shape that config.json doesn't give."""
    for row in rows:
        wanted = _their_shape(row, shapes)[0 if row.count is None else 1 :]
        for name in row.names:
            if name not in stored:
                raise UserError(f"the weights lack the tensor {name}, which a {family.model_type} of this {CONFIG} has")
            found = stored[name].shape
            if found != wanted:
                raise UserError(f"the tensor {name} has the shape {found}, and by {CONFIG} it should be {wanted}")
    unread = ignore + family.ignored + (family.copies if model.head.tied else ())
    known = {name for row in rows for name in row.names}
    for name in stored:
        if name not in known and not matches(name, unread):
            raise UserError(
                f"the tensor {name} {list(stored[name].shape)} has no place in a {family.model_type} of this {CONFIG}; "
                f'if it changes no logit, pass ignore=("{name}",)'
            )


def _newer(family: Family, name: str) -> str:
    """The name that a tensor of an older file has today."""
    for old, new in family.renamed.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _check_copies(family: Family, rows: tuple[Row, ...], stored: Mapping[str, Tensor]) -> None:
    """Refuses a tied head that isn't the table."""
    table = next(row.theirs for row in rows if row.ours == ("embedding/table",))
    for name in family.copies:
        if name in stored and name not in {row.theirs for row in rows}:
            if not np.array_equal(stored[name].read(), stored[table].read()):
                raise UserError(f'{CONFIG} says "tie_word_embeddings", and {name} is not {table}: which one is wrong?')


def _their_shape(row: Row, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Of a tensor that holds parameters of these shapes."""
    zeros = [np.broadcast_to(np.zeros((), np.int8), shapes[path]) for path in row.ours]
    return tuple(row.write(*zeros).shape)
