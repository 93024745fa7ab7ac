"""The records of `schema` from JSON and back."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from gpt_jax.ablation.schema import STUDY, StudyRecord
from gpt_jax.config.errors import ConfigError, nearest
from gpt_jax.config.printable import printable
from gpt_jax.runs.folder import RunFolder

R = TypeVar("R")


def read(kind: type[R], folder: RunFolder, name: str) -> R:
    """The record in a JSON file of a folder.

    Raises:
      ConfigError: the file holds something else; the message names the field.
    """
    return from_json(kind, folder.read_json(name), str(folder.file(name)))


def read_study(folder: RunFolder) -> StudyRecord:
    """`study.json` of a study's folder, with today's name for what earlier ones called the final loss.

    Raises:
      ConfigError: as `read`.
    """
    study = read(StudyRecord, folder, STUDY)
    return dataclasses.replace(study, metric=StudyRecord.metric) if study.metric == "validation_loss" else study


def write(record: Any, folder: RunFolder, name: str) -> None:
    """Writes a record as a JSON file."""
    folder.write_json(name, dataclasses.asdict(record))


def from_json(kind: type[R], value: Any, file: str) -> R:
    """Builds a record from what JSON holds. An absent field takes its default, a number that is not finite is None.

    Raises:
      ConfigError: an unknown field, an absent one that has no default, or a value of another type; it names `file`.
    """
    try:
        return _record(kind, value, "")
    except _Mismatch as error:
        raise ConfigError(
            f"{file} holds no {kind.__name__}: {error}; restore it, or read it with the gpt_jax that wrote it"
        ) from None


class _Mismatch(Exception):
    """A value that is not of its field's type."""


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _record(kind: Any, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise _Mismatch(f"{path or 'it'} is no group of fields")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise _Mismatch(f'it has an unknown field "{path}{key}"{nearest(key, fields)}')
    for name, field in fields.items():
        if name not in value and not _has_default(field):
            raise _Mismatch(f'it has no field "{path}{name}"')
    hints = _hints(kind)
    given = {key: (item, hints[key]) for key, item in value.items() if not _is_default(item, fields[key], hints[key])}
    return kind(**{key: _convert(item, hint, f"{path}{key}") for key, (item, hint) in given.items()})


def _is_default(value: Any, field: Any, hint: Any) -> bool:
    """Whether null stands for the default of a field that has one and can't be None."""
    return value is None and _has_default(field) and not _allows_none(hint)


def _has_default(field: Any) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _allows_none(hint: Any) -> bool:
    return hint is Any or hint is type(None) or type(None) in typing.get_args(hint)


def _convert(value: Any, hint: Any, path: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        value = None
    if hint is Any:
        return _finite(value)
    if value is None and _allows_none(hint):
        return None
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [arg for arg in args if arg is not type(None)]
        exact = [kind for kind in kinds if kind is type(value)]
        return _convert(value, (exact or kinds)[0], path)
    if dataclasses.is_dataclass(hint):
        return _record(hint, value, f"{path}.")
    if origin is tuple and isinstance(value, list | tuple):
        if args[-1] is not Ellipsis and len(args) != len(value):
            raise _Mismatch(f'"{path}" has {len(value)} items in place of {len(args)}')
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        return tuple(_convert(v, kind, f"{path}[{i}]") for i, (v, kind) in enumerate(zip(value, kinds, strict=True)))
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: _convert(item, args[1], f"{path}.{key}") for key, item in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise _Mismatch(f'"{path}" is {value!r}')
    return printable(value) if isinstance(value, str) else value  # names and sentences, which are shown on terminals


def _finite(value: Any) -> Any:
    """JSON's value with None in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
