"""A parameter's path, such as `blocks/3/attention/query/kernel`, is its name in rules, tables and messages."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax


@functools.cache
def _regex(glob: str) -> re.Pattern[str]:
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", glob)
    return re.compile("".join(special[part] if part in special else re.escape(part) for part in parts))


def matches(path: str, globs: Iterable[str]) -> bool:
    """Whether one of `globs` names `path`: `*` and `?` stay within a name, `**` any number of names, even none."""
    return any(_regex(glob).fullmatch(path) for glob in globs)


def path_of(keys: tuple[Any, ...]) -> str:
    """The path of a leaf from its key path in a pytree; Linen's outer collection name `params` is no part of it."""
    names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", None)))) for key in keys]
    return "/".join(names[1:] if names[:1] == ["params"] else names)


def layer_paths(path: str) -> list[str]:
    """The paths of the layers stored under `path`: itself, unless it names a scanned stack (`blocks/0:12:1/…`)."""
    for name in path.split("/"):
        if ":" in name:
            return [path.replace(name, str(layer), 1) for layer in range(*map(int, name.split(":")))]
    return [path]


def is_stacked(path: str) -> bool:
    """Whether the parameter carries a leading axis of layers."""
    return ":" in path


def map_with_path(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function takes the path of the leaf first."""
    return jax.tree.map_with_path(lambda keys, *leaves: function(path_of(keys), *leaves), tree, *rest)
