"""Strict conversion between the frozen configuration dataclasses and plain nested dicts (and
`ml_collections.ConfigDict`).

A field whose type is a `Variant` (attention, mask, position, MLP, norm, optimizer, schedule, data …) is written as a
dict whose `type` names the class; where the field allows None, None is written as `{"type": "none"}`. Subclassing
`Variant` registers the class, so defining a variant in a notebook cell adds it to the configuration language.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict, config_dict

from gpt_jax.config.errors import ConfigError, nearest
from gpt_jax.config.variant import Variant

NONE_TAG = "none"
T = TypeVar("T")


def to_dict(value: Any) -> Any:
    """The plain nested form of a configuration: dicts, lists, numbers, strings and None only. Inverse of
    `from_dict`.
    """
    if hasattr(value, "to_compact_dict"):
        return value.to_compact_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tag = {"type": type(value).__name__} if isinstance(value, Variant) else {}
        hints = _hints(type(value))
        return tag | {
            f.name: {"type": NONE_TAG}
            if getattr(value, f.name) is None and _variant_of(hints[f.name])
            else to_dict(getattr(value, f.name))
            for f in dataclasses.fields(value)
        }
    if isinstance(value, tuple | list):
        return [to_dict(item) for item in value]
    return value


def from_dict(kind: type[T], values: Any, path: str = "") -> T:
    """Builds the dataclass `kind` from its plain nested form; absent keys take the dataclass's defaults.

    Raises:
      ConfigError: an unknown key (the message names the nearest real one), a value of the wrong type, or a combination
        that `kind` refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or kind.__name__} must be a group of settings, not {values!r}")
    if (from_compact := getattr(kind, "from_compact_dict", None)) is not None:
        return from_compact(values, path)
    hints = _hints(kind)  # type: ignore[arg-type]
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in names and not (key == "type" and issubclass(kind, Variant)):
            moved = getattr(kind, "moved", {})
            now = f"; it is {join(path, moved[key])} now" if key in moved else nearest(key, names)
            raise ConfigError(f'unknown setting "{join(path, key)}" of {kind.__name__}{now}')
    missing = [f.name for f in dataclasses.fields(kind) if _is_required(f) and f.name not in values]  # type: ignore[arg-type]
    if missing:
        raise ConfigError(
            f'{path or kind.__name__} of type {kind.__name__} needs the setting "{join(path, missing[0])}"'
        )
    converted = {key: convert(values[key], hints[key], join(path, key)) for key in values if key != "type"}
    try:
        return kind(**converted)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if path and not str(error).startswith(path) else str(error)) from None


def convert(value: Any, hint: Any, path: str) -> Any:
    """One value in the type that a field declares; raises as `from_dict` does."""
    if (variant := _variant_of(hint)) is not None:
        return _variant_from_dict(variant, value, path, optional=_allows_none(hint))
    if _allows_none(hint):
        if value is None:
            return None
        (hint,) = [a for a in typing.get_args(hint) if a is not type(None)]
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{path} is {value!r}{nearest(str(value), map(str, typing.get_args(hint)))}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ConfigError(f"{path} must be a list, not {value!r}")
        return tuple(convert(item, typing.get_args(hint)[0], f"{path}[{i}]") for i, item in enumerate(value))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path} must be of type {hint.__name__}, not {value!r}")
    return value


def _variant_from_dict(kind: type[Variant], value: Any, path: str, optional: bool) -> Any:
    if isinstance(value, kind) or (value is None and optional):
        return value
    if not isinstance(value, Mapping) or "type" not in value:
        raise ConfigError(f'{path} must be a group of settings with a "type"{nearest("", kind.choices)}')
    tag = value["type"]
    if tag == NONE_TAG and optional:
        for key in value:
            if key != "type":
                raise ConfigError(f'{join(path, key)} is set, but {join(path, "type")} is "none": choose a type')
        return None
    if tag not in kind.choices:
        names = [*kind.choices, *([NONE_TAG] if optional else [])]
        hint = " (a variant defined in a notebook or script must be defined again before it is used)"
        raise ConfigError(f'{join(path, "type")} is "{tag}", which is not known{nearest(str(tag), names)}{hint}')
    return from_dict(kind.choices[tag], value, path)


def to_config_dict(value: Any) -> ConfigDict:
    """The configuration as a `ConfigDict`. Every setting, also one that is None, can be set from the command line."""

    def convert_group(group: Any, kind: Any) -> Any:
        hints = _hints(kind) if isinstance(kind, type) and dataclasses.is_dataclass(kind) else {}
        result = ConfigDict()
        for key, item in group.items():
            hint = hints[key] if key in hints else object
            if isinstance(item, dict):
                result[key] = convert_group(item, _class_of(item, hint))
            elif item is None:
                result[key] = config_dict.placeholder(_scalar_of(hint))
            else:
                result[key] = tuple(item) if isinstance(item, list) else item
        return result

    return convert_group(to_dict(value), type(value))


def from_config_dict(kind: type[T], values: ConfigDict, overridden: Mapping[str, Any] | None = None) -> T:
    """`from_dict` for a ConfigDict. Where `overridden` (dotted keys from the command line) changes the `type` of a
    group, settings of the old type that the new type lacks are dropped, unless the command line sets them too.
    """
    plain = json.loads(json.dumps(values.to_dict()))
    overridden = overridden or {}
    for key in overridden:
        if key.endswith(".type"):
            group = plain
            prefix = key.removesuffix(".type")
            for part in prefix.split("."):
                group = group[part]
            fields = _fields_of_tag(group["type"])
            given = {k.removeprefix(prefix + ".").split(".")[0] for k in overridden if k.startswith(prefix + ".")}
            for name in [n for n in group if n != "type" and n not in fields and n not in given]:
                del group[name]
    return from_dict(kind, plain)


def _fields_of_tag(tag: str) -> set[str]:
    kinds = [kind.choices[tag] for kind in Variant.__subclasses__() if tag in kind.choices]
    return {f.name for kind in kinds for f in dataclasses.fields(kind)}  # type: ignore[arg-type]


def config_hash(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the canonical JSON of a configuration."""
    canonical = from_dict(type(value), to_dict(value))  # 1 where a float belongs becomes 1.0
    return hashlib.sha256(json.dumps(to_dict(canonical), sort_keys=True).encode()).hexdigest()[:16]


def flatten(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` → `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, item in values.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, join(path, key))
        else:
            flat[join(path, key)] = item
    return flat


def difference(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configurations differ: dotted key → (old value, new value), None where absent."""
    before, after = flatten(to_dict(old)), flatten(to_dict(new))
    keys = [*before, *(key for key in after if key not in before)]
    pairs = {key: (before[key] if key in before else None, after[key] if key in after else None) for key in keys}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` applied; a group whose type changes is replaced as a whole."""
    result = dict(base)
    for key, change in changes.items():
        old = base[key] if key in base else None
        same_type = (
            isinstance(old, Mapping)
            and isinstance(change, Mapping)
            and ("type" not in change or ("type" in old and change["type"] == old["type"]))
        )
        result[key] = overlay(old, change) if same_type else change  # type: ignore[arg-type]
    return result


def overlay_between(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The smallest `changes` for which `overlay(base, changes) == other`."""
    changes = {}
    for key, item in other.items():
        if item == base[key]:
            continue
        nested = isinstance(item, Mapping) and isinstance(base[key], Mapping)
        same_type = nested and ("type" not in item or item["type"] == base[key]["type"])
        changes[key] = overlay_between(base[key], item) if same_type else item
    return changes


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return kind.compact_hints() if hasattr(kind, "compact_hints") else typing.get_type_hints(kind)


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _allows_none(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _variant_of(hint: Any) -> type[Variant] | None:
    """The kind of variant that a field declares, or None."""
    for arg in (hint, *typing.get_args(hint)):
        if isinstance(arg, type) and issubclass(arg, Variant):
            return arg
    return None


def _class_of(item: Mapping[str, Any], hint: Any) -> Any:
    kind = _variant_of(hint)
    if kind is not None and "type" in item:
        return kind.choices[item["type"]] if item["type"] in kind.choices else kind
    return hint


def _scalar_of(hint: Any) -> type:
    scalar = next((a for a in typing.get_args(hint) if a is not type(None)), hint)
    return {tuple: tuple, typing.Literal: str}.get(typing.get_origin(scalar), scalar)


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
