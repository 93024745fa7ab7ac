"""Paths such as `blocks/3/attention/query/kernel`, and the globs that select them.

A parameter's path is its name everywhere: in optimizer and sharding rules, import tables, checkpoints and messages.
Taps are named in the same way.
"""

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
    """Whether one of `globs` matches the whole `path`: `*` and `?` do not match "/", `**` matches any number of names,
    including none. Brackets have no special meaning.
    """
    return any(_regex(glob).fullmatch(path) for glob in globs)


def path_of(keys: tuple[Any, ...]) -> str:
    """The path of a leaf, given its key path in a pytree, without the leading `params` of Linen's collection."""
    names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", None)))) for key in keys]
    return "/".join(names[1:] if names[:1] == ["params"] else names)


def layer_paths(path: str) -> list[str]:
    """The per-layer paths of what is stored under `path`: [path], or one per layer of a scanned stack
    (`blocks/0:12:1/…`).
    """
    for name in path.split("/"):
        if ":" in name:
            return [path.replace(name, str(layer), 1) for layer in range(*map(int, name.split(":")))]
    return [path]


def is_stacked(path: str) -> bool:
    """Whether the parameter at `path` has a leading axis of layers."""
    return ":" in path


def map_with_path(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` with `function(path, leaf, *rest)`."""
    return jax.tree.map_with_path(lambda keys, *leaves: function(path_of(keys), *leaves), tree, *rest)
