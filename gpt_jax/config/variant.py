"""A setting that is one of several small dataclasses, and the tables that say what implements each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from gpt_jax.config.errors import ConfigError

T = TypeVar("T")


class Variant:
    """Base of every tagged choice. The direct subclasses are the kinds (`AttentionConfig`, `MaskConfig` …), theirs
    the choices.
    """

    choices: ClassVar[dict[str, type]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Variant in cls.__bases__:
            cls.choices = {}
        else:
            cls.choices[cls.__name__] = cls


def implementation(table: Mapping[Any, T], choice: Variant) -> T:
    """What `table` has for the type of `choice`.

    Raises:
      ConfigError: nothing, as for a variant defined in a notebook and not yet entered in the table.
    """
    if type(choice) not in table:
        names = ", ".join(kind.__name__ for kind in table)
        raise ConfigError(f"{type(choice).__name__} has no implementation beside those of {names}: enter one for it")
    return table[type(choice)]
