"""The settings in which an arm differs from the baseline, one by one and layer by layer, and who asked for each."""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gpt_jax.ablation.matching import FOLLOWS
from gpt_jax.ablation.schema import Leaf
from gpt_jax.ablation.study import Study, covers
from gpt_jax.config import Config, ModelConfig
from gpt_jax.config.conversion import NONE_TAG, join, to_dict
from gpt_jax.config.errors import ConfigError
from gpt_jax.config.variant import Variant

# A setting that a run derives where the configuration leaves it None → the setting or group that it is derived from.
DERIVED = {"model.vocab_size": "data", "schedule.steps": "train.steps", "train.average.steps": "train.steps"}
PATTERN, LETTERS, LAYERS = "model.pattern", "model.letters", "model.layers"
ABSENT = object()
FOLLOWING = "follows"  # asked by the arm that named what the setting is derived from


class Setting(NamedTuple):
    """A setting's value in plain form, and the type that its field declares, which tells settings of one name apart."""

    value: Any
    hint: Any


def settings(value: Any, path: str = "") -> Iterator[tuple[str, Setting]]:
    """(dotted key, setting) of a configuration or a part of it. The blocks of a model are left out; the type of a
    choice has the key `type`.
    """
    if isinstance(value, Variant):
        yield join(path, "type"), Setting(type(value).__name__, None)
    for name, hint in _hints(value.__class__).items():
        item, key = getattr(value, name), join(path, name)
        if isinstance(value, ModelConfig) and name == "blocks":
            continue
        if dataclasses.is_dataclass(item):
            yield from settings(item, key)
        elif item is None and _is_choice(hint):
            yield join(key, "type"), Setting(NONE_TAG, None)
        else:
            yield key, Setting(to_dict(item), hint)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _is_choice(hint: Any) -> bool:
    return any(isinstance(kind, type) and issubclass(kind, Variant) for kind in (hint, *typing.get_args(hint)))


def by_layer(config: Config, layers: int) -> tuple[dict[str, Setting], list[dict[str, Setting]]]:
    """The settings of a run but those of its blocks, and those of each of `layers` layers, to which the pattern of the
    blocks is repeated.
    """
    common = dict(settings(config)) | {LAYERS: Setting(config.model.layers, int)}
    period = len(config.model.to_compact_dict()["pattern"])
    known = [dict(settings(block, "model")) for block in config.model.blocks[:period]]
    return common, [known[layer % period] for layer in range(layers)]


def changed(study: Study, name: str, configs: Mapping[str, Config]) -> tuple[Leaf, ...]:
    """The settings in which the arm `name` differs from the baseline; `asked_by` is that of `Leaf`, or `FOLLOWING`, or
    "" where nobody asked. Settings of a type that the arm does not have are left out. `configs` are the arms' resolved
    configurations.

    Raises:
      ConfigError: an arm sets the whole model.
    """
    count = configs[name].model.layers
    before, after = by_layer(configs[study.baseline], count), by_layer(configs[name], count)
    sides = [_Words(study, arm) for arm in (study.baseline, name)]
    found: dict[str, tuple[Leaf, list[int]]] = {}
    for layer in (None, *range(count)):
        old, new = (before[0], after[0]) if layer is None else (before[1][layer], after[1][layer])
        for key, setting in new.items():
            was = old[key] if key in old else Setting(ABSENT, None)
            if setting.value == was.value:
                continue
            is_new = was.value is ABSENT or was.hint != setting.hint
            asked = _asked_by(study, name, sides, key, layer, (was.value, setting.value), is_new)
            leaf = Leaf(key, None if was.value is ABSENT else was.value, setting.value, asked)
            mark = json.dumps([key, leaf.baseline, leaf.arm, asked])
            found.setdefault(mark, (leaf, []))[1].extend(() if layer is None else (layer,))
    return tuple(
        dataclasses.replace(leaf, layers=() if len(layers) in (0, count) else tuple(layers))
        for leaf, layers in found.values()
    )


def _asked_by(
    study: Study,
    name: str,
    sides: list[_Words],
    key: str,
    layer: int | None,
    values: tuple[Any, Any],
    is_new: bool,
) -> str:
    frees = study.frees()
    if name in frees and (key == frees[name] or (frees[name] in FOLLOWS and key in FOLLOWS[frees[name]])):
        return "match"
    baseline, arm = sides
    if arm.say(key, layer) or arm.spells(key, layer, values[1]):
        return "arm"
    # What the baseline's own words say is asked for where the arm leaves the base as it is.
    if not arm.sets(key, layer) and (baseline.say(key, layer) or baseline.spells(key, layer, values[0])):
        return "arm"
    if key in DERIVED and any(side.derives(key) for side in sides):
        return FOLLOWING
    return "type" if is_new else ""


class _Words:
    """What the study says of one arm: the settings that it names."""

    def __init__(self, study: Study, name: str):
        arm = next(arm for arm in study.arms if arm.name == name)
        if "model" in arm.changes:
            raise ConfigError(f'the arm "{name}" sets the whole model: set what differs, by dotted key')
        self._keys = {said for key, value in arm.changes.items() for said in _said(key, value)}
        self._groups = {group for key, value in arm.changes.items() for group in _replaced(key, value)}
        compact = study.base.model.to_compact_dict()
        self._is_spelled = PATTERN in arm.changes
        self._pattern: str = arm.changes[PATTERN] if self._is_spelled else compact["pattern"]
        # What a letter stands for in the base.
        self._letters = {
            letter: dict(settings(study.base.model.blocks[i], "model")) for i, letter in enumerate(compact["pattern"])
        }
        self._unresolved = study.configs()[name]

    def say(self, key: str, layer: int | None) -> bool:
        """Whether the arm names the setting, for the whole model or for the letter of this layer."""
        return any(one in self._keys for one in self._spellings(key, layer))

    def sets(self, key: str, layer: int | None) -> bool:
        """Whether the arm names the setting or replaces a group that it belongs to."""
        return any(covers(group, one) for group in self._groups for one in self._spellings(key, layer))

    def spells(self, key: str, layer: int | None, value: Any) -> bool:
        """Whether the arm's own pattern puts a letter of the base here, which has this value."""
        if layer is None or not self._is_spelled or self._letter(layer) not in self._letters:
            return False
        base = self._letters[self._letter(layer)]
        return key in base and base[key].value == value

    def derives(self, key: str) -> bool:
        """Whether the run derives the setting from one that the arm names."""
        left = dict(settings(self._unresolved))
        return key in left and left[key].value is None and any(covers(DERIVED[key], said) for said in self._keys)

    def _spellings(self, key: str, layer: int | None) -> list[str]:
        return [key] if layer is None else [key, key.replace("model", f"{LETTERS}.{self._letter(layer)}", 1)]

    def _letter(self, layer: int) -> str:
        return self._pattern[layer % len(self._pattern)]


def _replaced(key: str, value: Any) -> Iterator[str]:
    """The settings and groups that `value` replaces: those of a letter go by their parts, unless they have a type."""
    if covers(LETTERS, key) and isinstance(value, Mapping) and "type" not in value:
        for name, item in value.items():
            yield from _replaced(join(key, name), item)
    else:
        yield key


def _said(key: str, value: Any, default: Any = ABSENT) -> Iterator[str]:
    """The settings that a value of `key` names: all keys of a dict; of a dataclass its type, and the fields that have
    no default or another value than theirs, or than those of `default`, which stands there if nobody says anything.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _said(join(key, name), item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        if isinstance(value, Variant):
            yield join(key, "type")
        for field in dataclasses.fields(value):
            item, usual = getattr(value, field.name), field.default
            elsewhere = getattr(default, field.name) if type(default) is type(value) else usual
            if usual is dataclasses.MISSING or item != usual or item != elsewhere:
                yield from _said(join(key, field.name), item, usual)
    else:
        yield key
        if value is None:
            yield join(key, "type")
