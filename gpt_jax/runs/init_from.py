"""What a run takes over from the run that it begins with (`init_from`), and what has to agree with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from gpt_jax.config import Attention, BlockConfig, Config, Learned, ModelConfig, Text, learned_positions
from gpt_jax.config.conversion import difference, overlay, to_config_dict, to_dict
from gpt_jax.config.errors import ConfigError, UserError
from gpt_jax.data import Data
from gpt_jax.data.tokenizer import load_tokenizer
from gpt_jax.model.adapter import without_adapter
from gpt_jax.model.shapes import canonical_shapes
from gpt_jax.runs.folder import TOKENIZER, RunFolder
from gpt_jax.runs.load import Base, run_config

EXECUTION = ("scan", "remat", "kernel", "dtype", "param_dtype")  # and how parameters are drawn, which these are not


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The plain form of a `Config` whose model or tokenizer is left to the run in `init_from`.

    A model without `layers` holds what it has otherwise than that run's; text without a `tokenizer` gets that run's. So
    a configuration for any model can say, for example, `{"model": {"adapter": {"type": "Lora"}}, …}`.

    Raises:
      ConfigError: there is something to complete, and no `init_from`.
      FileNotFoundError: there is no run in `init_from`.
    """
    model, data = ((values[key] if key in values else {}) for key in ("model", "data"))
    takes_model = "layers" not in model
    tokenizer = data["tokenizer"] if "tokenizer" in data else {"type": None}
    takes_tokenizer = "type" in data and data["type"] == "Text" and tokenizer["type"] is None
    if not (takes_model or takes_tokenizer):
        return dict(values)
    init_from = values["init_from"] if "init_from" in values else None
    if init_from is None:
        if takes_model:
            raise ConfigError(
                "init_from is not set, and this configuration takes its model from the run there: give"
                " --config.init_from=DIR, the folder of a run"
            )
        return dict(values)
    folder = RunFolder(init_from)
    base = to_dict(_pinned(run_config(folder).model))
    result = dict(values)
    if takes_model:
        result["model"] = overlay(base, model)
    if takes_tokenizer:
        saved = {"type": "TokenizerFile", "path": str(folder.file(TOKENIZER))}
        result["data"] = {**data, "tokenizer": saved}
    return result


def to_partial_dict(changes: Mapping[str, Any], **run: Any) -> ConfigDict:
    """What a file of configs/ returns for a run whose model is that of `init_from`: `changes` are what the model has
    otherwise, `run` the other fields of `Config`. Text without a path to a tokenizer takes that run's.
    """
    any_model = ModelConfig(None, 1, 1, (BlockConfig(Attention(1), None),))
    values = to_config_dict(Config(model=any_model, **run))
    values.model = ConfigDict(
        {key: to_config_dict(change) if dataclasses.is_dataclass(change) else change for key, change in changes.items()}
    )
    if isinstance(run["data"], Text) and run["data"].tokenizer == Text().tokenizer:
        values.data.tokenizer = ConfigDict({"type": config_dict.placeholder(str)})
    return values


def with_vocabulary(config: Config, base: Base) -> Config:
    """A vocabulary that is left open is the base's, which may have more ids than its tokenizer."""
    if config.model.vocab_size is not None:
        return config
    model = dataclasses.replace(config.model, vocab_size=base.model.config.vocab_size)
    return dataclasses.replace(config, model=model)


def check_base(base: Base, model: ModelConfig, data: Data) -> None:
    """Refuses a base with other parameters, or one that reads other ids.

    Raises:
      ConfigError: the model's parameters differ in name or shape; the settings that differ are named.
      ValueError: the tokenizer of the data is another one.
    """
    ours, theirs = canonical_shapes(without_adapter(model)), canonical_shapes(base.model.config)
    for path in dict.fromkeys([*theirs, *ours]):
        here, there = (shapes[path] if path in shapes else None for shapes in (ours, theirs))
        if here != there:
            changes = ", ".join(changed_settings(base, model))
            raise ConfigError(
                f"the parameters of the run in {base.folder} don't fit this model, which differs in {changes}: {path}"
                f" is {_shown(there)} there and {_shown(here)} here; take them back, or leave the model out of the"
                " configuration"
            )
    tokenizer = load_tokenizer(base.folder.file(TOKENIZER))
    if tokenizer.content_hash() != data.tokenizer.content_hash():
        raise UserError(
            f"the run in {base.folder} reads other ids than this data has: set data.tokenizer.type to TokenizerFile and"
            f" data.tokenizer.path to {base.folder.file(TOKENIZER)}"
        )


def changed_settings(base: Base, model: ModelConfig) -> list[str]:
    """The settings of `model` that change what the base's parameters compute, as `model.key: before → after`."""
    changes = difference(_pinned(base.model.config), _pinned(model))
    kept = {key: pair for key, pair in changes.items() if key not in EXECUTION and not key.startswith("init.")}
    return [f"model.{key}: {before!r} → {after!r}" for key, (before, after) in kept.items()]


def _pinned(model: ModelConfig) -> ModelConfig:
    """The same without its adapter, and with the length of a learned table of positions no longer derived."""
    position = model.embedding.position
    if isinstance(position, Learned):
        position = dataclasses.replace(position, length=learned_positions(model))
    return without_adapter(
        dataclasses.replace(model, embedding=dataclasses.replace(model.embedding, position=position))
    )


def _shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else " × ".join(map(str, shape)) or "a number"
