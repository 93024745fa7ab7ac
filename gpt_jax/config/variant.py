"""Settings that are one of several small dataclasses, and the tables of their implementations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from gpt_jax.config.errors import ConfigError

T = TypeVar("T")


class Variant:
    """Base of every tagged choice. Its direct subclasses are the kinds (`AttentionConfig`, `MaskConfig` …); the
    subclasses of a kind are its choices.
    """

    choices: ClassVar[dict[str, type]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Variant in cls.__bases__:
            cls.choices = {}
        else:
            cls.choices[cls.__name__] = cls


def implementation(table: Mapping[Any, T], choice: Variant) -> T:
    """The entry of `table` for the type of `choice`.

    Raises:
      ConfigError: there is none, for example for a variant that a notebook defines and has not entered yet.
    """
    if type(choice) not in table:
        names = ", ".join(kind.__name__ for kind in table)
        raise ConfigError(f"{type(choice).__name__} has no implementation beside those of {names}: enter one for it")
    return table[type(choice)]
