"""What a run takes from the run that it begins with (`init_from`), and what must agree between the two."""

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

EXECUTION = ("scan", "remat", "kernel", "dtype", "param_dtype")  # settings that may differ from the base's


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in the model and the tokenizer of a `Config` in plain form from the run in `init_from`.

    A model without `layers` lists changes to the model of that run; text without a tokenizer takes that run's. So one
    configuration fits any base model, for example `{"model": {"adapter": {"type": "Lora"}}, …}`. Values that are
    complete are returned unchanged.

    Raises:
      ConfigError: the model is incomplete and `init_from` is not set.
      MissingFile: there is no run in `init_from`.
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
    """The ConfigDict of a run that takes its model from `init_from`, for a file of configs/.

    `changes` are settings of the model that differ from that run's, `run` the other fields of `Config`. Text with the
    default tokenizer takes that run's tokenizer.
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
    """Sets `model.vocab_size`, if it is None, to that of the base, which may exceed the ids of its tokenizer."""
    if config.model.vocab_size is not None:
        return config
    model = dataclasses.replace(config.model, vocab_size=base.model.config.vocab_size)
    return dataclasses.replace(config, model=model)


def check_base(base: Base, model: ModelConfig, data: Data) -> None:
    """Checks that the base has the parameters of `model`, its adapter aside, and the tokenizer of `data`.

    Raises:
      ConfigError: parameters differ in name or shape; the message names the settings that differ.
      UserError: the tokenizers differ.
    """
    ours, theirs = canonical_shapes(without_adapter(model)), canonical_shapes(base.model.config)
    for path in dict.fromkeys([*theirs, *ours]):
        here, there = (shapes[path] if path in shapes else None for shapes in (ours, theirs))
        if here != there:
            changes = ", ".join(changed_settings(base, model))
            raise ConfigError(
                f"the parameters of the run in {base.folder} do not fit this model, which differs in {changes}: {path}"
                f" is {_shown(there)} there and {_shown(here)} here; take them back, or leave the model out of the"
                " configuration"
            )
    tokenizer = load_tokenizer(base.folder.file(TOKENIZER))
    if tokenizer.content_hash() != data.tokenizer.content_hash():
        raise UserError(
            f"the run in {base.folder} has another tokenizer than this data: set data.tokenizer.type to TokenizerFile"
            f" and data.tokenizer.path to {base.folder.file(TOKENIZER)}"
        )


def changed_settings(base: Base, model: ModelConfig) -> list[str]:
    """The settings in which `model` differs from the base, as `model.key: before → after`, without those of execution,
    initialization and the adapter.
    """
    changes = difference(_pinned(base.model.config), _pinned(model))
    kept = {key: pair for key, pair in changes.items() if key not in EXECUTION and not key.startswith("init.")}
    return [f"model.{key}: {before!r} → {after!r}" for key, (before, after) in kept.items()]


def _pinned(model: ModelConfig) -> ModelConfig:
    """The model without its adapter, and with an explicit length of a learned table of positions."""
    position = model.embedding.position
    if isinstance(position, Learned):
        position = dataclasses.replace(position, length=learned_positions(model))
    return without_adapter(
        dataclasses.replace(model, embedding=dataclasses.replace(model.embedding, position=position))
    )


def _shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else " × ".join(map(str, shape)) or "a number"
