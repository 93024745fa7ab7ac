"""A hash of the settings in the weights that we write, so that a config.json that changed later is noticed.

Each tensor has a hash of its own, see `gpt_jax.interop.weights`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gpt_jax.config.errors import ConfigError
from gpt_jax.interop.account import CONFIG
from gpt_jax.interop.settings import HARMLESS
from gpt_jax.interop.weights import WEIGHTS, read_metadata

SEAL = "gpt_jax.config_sha256"  # key of the metadata


def sealed(values: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of weights whose config.json has the settings `values`."""
    return {SEAL: _hash(values)}


def is_sealed(metadata: Mapping[str, str], values: Mapping[str, Any]) -> bool:
    """Whether weights with this metadata were written with the settings `values`, or not by us."""
    return SEAL not in metadata or metadata[SEAL] == _hash(values)


def check_config(values: Mapping[str, Any], folder: Path, ignore: Collection[str]) -> None:
    """Raises ConfigError if the weights in a folder are ours and were written with other settings than `values`.

    "config.json" in `ignore` accepts the change.
    """
    if not (folder / WEIGHTS).exists() or CONFIG in ignore:
        return
    if not is_sealed(read_metadata(folder / WEIGHTS), values):
        raise ConfigError(
            f'{folder / CONFIG} has changed since gpt_jax wrote it: restore it, or pass ignore=("{CONFIG}",) if you'
            " changed it on purpose"
        )


def _hash(values: Mapping[str, Any]) -> str:
    """SHA-256 of the settings that can change a result."""
    kept = {key: value for key, value in values.items() if key not in HARMLESS or key == "model_type"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
