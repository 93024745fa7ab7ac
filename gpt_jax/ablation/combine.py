"""Arms from values of one key, and combinations of arms.

product(vary("model.attention.kv_heads", mha=4, mqa=1), vary("model.mlp.width", narrow=64, wide=256))
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from gpt_jax.ablation.study import Arm, Arms, covers
from gpt_jax.config.errors import ConfigError


def vary(key: str, values: Mapping[str, Any] | None = None, /, **more: Any) -> Arms:
    """An arm for each named value of one key."""
    return tuple(Arm(name, {key: value}) for name, value in {**(values or {}), **more}.items())


def chain(*groups: Arms) -> Arms:
    """All arms, one group after the other.

    Raises:
      ConfigError: two arms of one name.
    """
    arms = tuple(itertools.chain(*groups))
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f'chain has two arms of the name "{name}": rename one')
    return arms


def product(*groups: Arms) -> Arms:
    """Every combination of one arm of each group, named "a+b".

    Raises:
      ConfigError: two groups that set the same key.
    """
    return tuple(_combined(arms) for arms in itertools.product(*groups))


def zip_arms(*groups: Arms) -> Arms:
    """The first of each group together, then the second of each, and so on.

    Raises:
      ConfigError: groups of different sizes, or two that set the same key.
    """
    sizes = [len(group) for group in groups]
    if len(set(sizes)) > 1:
        raise ConfigError(f"zip_arms needs groups of one size, not of {', '.join(map(str, sizes))} arms")
    return tuple(_combined(arms) for arms in zip(*groups, strict=True))


def with_changes(arms: Arms, changes: Mapping[str, Any]) -> Arms:
    """The arms with `changes` added, which replace an arm's own values of the same keys."""
    return tuple(dataclasses.replace(arm, changes={**arm.changes, **changes}) for arm in arms)


def _combined(arms: tuple[Arm, ...]) -> Arm:
    changes: dict[str, Any] = {}
    for arm in arms:
        for key in arm.changes:
            if any(covers(key, other) or covers(other, key) for other in changes):
                raise ConfigError(f'"{key}" is set by two of the arms {", ".join(a.name for a in arms)}: drop one')
        changes |= arm.changes
    return Arm("+".join(arm.name for arm in arms), changes, tuple(arm.name for arm in arms))
