"""What a study refuses: arms that differ in more than its knobs, arms that nobody can tell apart, and arms that are not
evaluated on the same text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from gpt_jax.ablation.endpoint import BITS_PER_BYTE, FailureRate, FinalLoss
from gpt_jax.ablation.leaves import FOLLOWING, LETTERS, PATTERN, by_layer, changed
from gpt_jax.ablation.matching import Matched
from gpt_jax.ablation.schema import Leaf
from gpt_jax.ablation.study import Study, covers
from gpt_jax.config import Config
from gpt_jax.config.conversion import NONE_TAG, to_dict
from gpt_jax.config.errors import ConfigError, nearest
from gpt_jax.data import Batch, Data
from gpt_jax.model.gpt import GPT
from gpt_jax.training.state import init_params
from gpt_jax.training.step import model_arguments

# What decides no parameter of a run.
NEUTRAL = ("prompt", "wandb", "checkpoint", "evaluation")
ROWS = 256  # read at a time


# ── one knob ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_knobs(study: Study, configs: Mapping[str, Config]) -> dict[str, tuple[Leaf, ...]]:
    """The settings in which each arm differs from the baseline. `configs` are resolved.

    Raises:
      ConfigError: a knob is no setting or more than one choice, an arm differs in what is no knob, or in what it did
        not ask for.
    """
    for knob in study.knobs:
        _check_knob(knob, configs)
    leaves = {name: changed(study, name, configs) for name in configs}
    for name, found in leaves.items():
        others = [leaf for leaf in found if not _is_declared(study, leaf)]
        if others:
            raise ConfigError(
                f'the arm "{name}" differs from "{study.baseline}" in {", ".join(map(spelled, others))}, which the'
                " study does not declare: add to `knobs` what is part of the question, or make it equal"
            )
        for leaf in found:
            if not leaf.asked_by:
                raise ConfigError(
                    f'the arm "{name}" differs from "{study.baseline}" in {spelled(leaf)}, which came by a default that'
                    f" nobody asked for: name it in the arm beside the rest ({_in_words(leaf.key, leaf.arm)}), or keep"
                    f" the baseline's value ({_in_words(leaf.key, leaf.baseline)})"
                )
    return {name: tuple(map(_plain, found)) for name, found in leaves.items()}


def _plain(leaf: Leaf) -> Leaf:
    return dataclasses.replace(leaf, asked_by="arm") if leaf.asked_by == FOLLOWING else leaf


def _check_knob(knob: str, configs: Mapping[str, Config]) -> None:
    known = {key for config in configs.values() for layer in _whole(config) for key in layer}
    if covers(PATTERN, knob) or covers(LETTERS, knob):
        raise ConfigError(
            f'"{knob}" is no knob, since layers are compared setting by setting: name the settings that differ between'
            ' layers, such as "model.attention.mask"'
        )
    if knob == "seed":
        raise ConfigError('"seed" is no knob, since every arm is run with each of the seeds: ask about another setting')
    if knob in known:
        return
    groups = {key.rsplit(".", i)[0] for key in known for i in range(1, key.count(".") + 1)}
    if knob in groups and (f"{knob}.type" not in known or "." not in knob):
        inside = sorted(key for key in known if covers(knob, key))[:3]
        raise ConfigError(
            f'the knob "{knob}" covers more than one choice: name the settings that are part of the question, such as'
            f" {', '.join(inside)}"
        )
    if knob not in groups:
        raise ConfigError(f'the knob "{knob}" is not a setting of any arm{nearest(knob, known | groups)}')


def _whole(config: Config) -> list[dict[str, Any]]:
    common, layers = by_layer(config, config.model.layers)
    return [common, *layers]


def _is_declared(study: Study, leaf: Leaf) -> bool:
    """Whether the match solves the setting, or a knob covers it or the type that it came with."""
    if leaf.asked_by in ("match", FOLLOWING):
        return True
    types = [knob.removesuffix(".type") for knob in study.knobs if knob.endswith(".type")]
    came = leaf.asked_by == "type" and any(covers(group, leaf.key) for group in types)
    return came or any(covers(knob, leaf.key) for knob in study.knobs)


def spelled(leaf: Leaf) -> str:
    """`key: old → new`, and the layers where it is not all of them."""
    return f"{leaf.key}: {leaf.baseline!r} → {leaf.arm!r}{leaf.where}"


def _in_words(key: str, value: Any) -> str:
    """The setting as an arm spells it."""
    if not key.endswith(".type"):
        return f'"{key}": {value!r}'
    return f'"{key.removesuffix(".type")}": {None if value == NONE_TAG else f"{value}(...)"}'


# ── the same function ────────────────────────────────────────────────────────────────────────────────────────────────


def check_different(arms: Mapping[str, Matched], configs: Mapping[str, Config], data: Mapping[str, Data]) -> None:
    """Refuses two arms that compute the same: their settings outside of the model are equal, and so are the programs of
    their initial values and of their logits in training, from which all else follows. `configs` are resolved.

    Raises:
      ConfigError: names both arms.
    """

    def settings(name: str) -> str:
        rest = {key: value for key, value in to_dict(configs[name]).items() if key not in ("model", *NEUTRAL)}
        return json.dumps([rest, arms[name].costs.parameters, arms[name].costs.tokens], sort_keys=True)

    def init(name: str) -> str:
        config = configs[name]
        return _digest(jax.make_jaxpr(partial(init_params, GPT(config.model), config))(jax.random.key(0)))

    def logits(name: str) -> str:
        config, model = configs[name], GPT(configs[name].model)
        batch, key = data[name].batch(0, config.train.batch_size), jax.random.key(0)
        params = jax.eval_shape(partial(init_params, model, config), key)

        def apply(params: Any, batch: Batch, key: Any) -> Any:
            arguments = model_arguments(model, batch)
            return model.apply(params, batch.tokens, **arguments, train=True, rngs={"dropout": key})

        return _digest(jax.make_jaxpr(apply)(params, batch, key))

    groups = [list(configs)]
    for mark in (settings, init, logits):  # the cheapest first, so that few arms are traced
        groups = [part for group in groups for part in _alike(group, mark) if len(part) > 1]
    for first, second, *_ in groups:
        raise ConfigError(
            f'the arms "{first}" and "{second}" are the same function, however they are spelled: change or drop one'
        )


def _alike(names: list[str], mark: Callable[[str], str]) -> list[list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(mark(name), []).append(name)
    return list(found.values())


def _digest(traced: Any) -> str:
    """A hash of a jaxpr and its constants."""
    program = re.sub(r" at 0x[0-9a-f]+", "", str(traced))  # where Python keeps a function is no difference
    found = hashlib.sha256(program.encode())
    for const in traced.consts:
        found.update(np.asarray(const).tobytes())
    return found.hexdigest()


# ── the same text ────────────────────────────────────────────────────────────────────────────────────────────────────


def check_text(study: Study, configs: Mapping[str, Config], data: Mapping[str, Data]) -> str:
    """The unit in which the arms are compared: that of the endpoint, or bits per byte where tokenizers or contexts of
    text differ.

    Raises:
      ConfigError: an arm is not evaluated on the baseline's validation rows or text, or the endpoint has no value per
        byte.
    """
    own, unit = data[study.baseline], study.endpoint.unit
    context = configs[study.baseline].model.context_length
    for name, other in data.items():
        if own.is_task or other.is_task:
            if own.content_hash != other.content_hash:
                raise ConfigError(
                    f'the arm "{name}" has another task or other validation rows than "{study.baseline}": give all arms'
                    " the same data, and ask about other rows with a probe"
                )
            continue
        _check_same_bytes(name, other, study.baseline, own)
        is_same = other.tokenizer.content_hash() == own.tokenizer.content_hash()
        if is_same and configs[name].model.context_length == context:
            continue
        if not isinstance(study.endpoint, FinalLoss | FailureRate):
            raise ConfigError(
                f'the arms "{study.baseline}" and "{name}" differ in tokenizer or context, and the'
                f" {study.endpoint.words} has no value per byte: use the endpoint FinalLoss(), or the same tokenizer"
                " and context"
            )
        unit = BITS_PER_BYTE if isinstance(study.endpoint, FinalLoss) else unit
    return unit


def _check_same_bytes(name: str, other: Data, baseline: str, own: Data) -> None:
    if own.content_hash == other.content_hash:
        return
    if own.validation_bytes != other.validation_bytes or _text(own) != _text(other):
        raise ConfigError(
            f'the arm "{name}" is evaluated on another validation text ({other.validation_bytes:,} bytes) than'
            f' "{baseline}" ({own.validation_bytes:,}): give all arms the same corpus, path and validation_fraction and'
            " no data.validation_tokens, and tokenizers that all have an end of text, or that all have none"
        )


def _text(data: Data) -> str:
    """A hash of the text that the validation targets stand for, document by document."""
    batches = list(data.validation(ROWS))
    ids = np.concatenate([batch.targets[batch.weights > 0] for batch in batches])
    end, found = data.tokenizer.end_of_text, hashlib.sha256()
    for document in [ids] if end is None else np.split(ids, np.flatnonzero(ids == end)):
        text = data.tokenizer.decode_bytes(document[document != end].tolist())
        found.update(len(text).to_bytes(8, "big") + text)
    return found.hexdigest()
