"""What this machine remembers of its launches, so that `status`, `logs` and `stop` need a name only, and what a
launcher writes of each slice.

A launch is a folder of its name: `launch.json` says what was launched. The launch itself does not depend on it: the
state of a slice of TPUs is in its work folder.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_type_hints

from experiments.launch.description import BATCH, Launch
from gpt_jax.config.errors import UserError
from gpt_jax.config.foreign import read_json_object, well_formed

DESCRIPTION, STATE = "launch.json", "state.json"
# What a launcher says of a slice; a local one says `launcher` too, its process, which `stop` sends a signal to.
SAYS: dict[str, tuple[type, ...]] = {
    "state": (str,),
    "reason": (str,),
    "attempt": (int,),
    "used": (int, float),
    "tries": (int,),
    "code": (int, NoneType),
    "command": (list,),
}
LOCAL = SAYS | {"launcher": (int,)}


def home() -> Path:
    """`$GPT_JAX_LAUNCHES`, or the user's state folder."""
    if (own := os.environ.get("GPT_JAX_LAUNCHES")) is not None:
        return Path(own)
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state, "gpt_jax", "launches")


def folder(name: str) -> Path:
    return home() / name


def remember(launch: Launch, **more: Any) -> None:
    folder(launch.name).mkdir(parents=True, exist_ok=True)
    write(folder(launch.name) / DESCRIPTION, dataclasses.asdict(launch) | more)


def recall(name: str) -> tuple[Launch, dict[str, Any]]:
    """The launch of this name, and all that `remember` wrote.

    Raises:
      UserError: there is none.
    """
    path = folder(name) / DESCRIPTION
    if not path.exists():
        known = ", ".join(names()) or "none"
        raise UserError(
            f"this machine has launched no {name}, it knows: {known}; for another's give --zone, --type and --workdir"
        )
    values = read_json_object(path)
    with well_formed(path):
        own = {field.name: values[field.name] for field in dataclasses.fields(Launch)}
        own["command"] = tuple(own["command"])
        for key, kind in get_type_hints(Launch).items():
            if key not in ("target", "command"):
                _check(own, key, getattr(kind, "__args__", (kind,)))
        _check_words(own["command"])
        launch = Launch(**own)
        if launch.target in BATCH:
            _check(values, "digest", (str,))
        return launch, values


def checked_state(values: Any, source: Path | str, says: Mapping[str, tuple[type, ...]] = SAYS) -> dict[str, Any]:
    """`values` from `source`, as the state that a launcher has written of a slice, with the keys and types of `says`.

    Raises:
      UserError: they are not.
    """
    with well_formed(source):
        for key, kinds in says.items():
            _check(values, key, kinds)
            if key == "launcher" and values[key] < 1:  # a signal to 0 goes to all of this process's group
                raise ValueError(f"launcher is {values[key]}")
        _check_words(values["command"])
    return values


def _check(values: Any, key: str, kinds: tuple[type, ...]) -> None:
    """Checks that a value is of one of the types, a number finite, and not negative: -1 would be all processes."""
    value = values[key]
    if float in kinds and type(value) is int:
        value = float(value)
    if type(value) not in kinds or (isinstance(value, float | int) and not 0 <= value < math.inf):
        raise TypeError(f"{key} is {value!r}")


def _check_words(command: Any) -> None:
    if not all(isinstance(word, str) for word in command):
        raise TypeError(f"command is {command!r}")


def names() -> list[str]:
    return sorted(path.parent.name for path in home().glob(f"*/{DESCRIPTION}"))


def write(path: Path, values: dict[str, Any]) -> None:
    """Replaces a JSON file; readers see the old or the new content."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(values, indent=2) + "\n")
    partial.replace(path)
