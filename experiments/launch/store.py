"""What this machine remembers of its launches, so that `status`, `logs` and `stop` need a name only.

A launch is a folder of its name: `launch.json` says what was launched. The launch itself does not depend on it: the
state of a slice of TPUs is in its work folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from experiments.launch.description import Launch
from gpt_jax.config.errors import UserError
from gpt_jax.config.foreign import read_json_object, well_formed

DESCRIPTION, STATE = "launch.json", "state.json"


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
        return Launch(**own | {"command": tuple(own["command"])}), values


def names() -> list[str]:
    return sorted(path.parent.name for path in home().glob(f"*/{DESCRIPTION}"))


def write(path: Path, values: dict[str, Any]) -> None:
    """Replaces a JSON file; readers see the old or the new content."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(values, indent=2) + "\n")
    partial.replace(path)
