"""The record of a checkpoint: its step, its validation loss, the fingerprints of its arrays, and a digest of all that.

Arrays have fingerprints; the digest does the same for the record, so a flipped bit in it is found too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

STEP, LOSS, FINGERPRINTS, DIGEST = "step", "validation_loss", "fingerprints", "digest"
EARLIER = {STEP, FINGERPRINTS}  # what a record held before it had a digest


class DamagedRecord(ValueError):
    """A record is not what was saved. Its message completes "the record …"."""


class Sealed(NamedTuple):
    """What a record says. `extra` is what the caller of `sealed` has added.

    `validation_loss` is None if the checkpoint was saved without an evaluation, or by a version that did not record it.
    """

    step: int
    validation_loss: float | None
    fingerprints: dict[str, dict[str, str]]
    extra: dict[str, Any]


def sealed(
    step: int, validation_loss: float | None, fingerprints: Mapping[str, Mapping[str, str]], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """The record to save. A loss that is not finite counts as none, so that it never becomes the best."""
    is_known = validation_loss is not None and math.isfinite(validation_loss)
    content = dict(extra) | {
        STEP: step,
        LOSS: validation_loss if is_known else None,
        FINGERPRINTS: {item: dict(paths) for item, paths in fingerprints.items()},
    }
    return content | {DIGEST: _digest(content)}


def unsealed(content: Any, step: int) -> Sealed:
    """Reads the record of the checkpoint in the folder of `step`.

    Raises:
      DamagedRecord: it is not what was saved, or was saved for another step.
    """
    if not isinstance(content, Mapping):
        raise DamagedRecord("is no group of settings")
    body = dict(content)
    digest = body.pop(DIGEST, None)
    if digest != _digest(body) if DIGEST in content else body.keys() != EARLIER:
        raise DamagedRecord("is not what was saved")
    found, prints = body.pop(STEP), body.pop(FINGERPRINTS)
    if type(found) is not int or not _are_fingerprints(prints):
        raise DamagedRecord("is not what was saved")
    if found != step:
        raise DamagedRecord(f"is that of step {found}: the folder was renamed or copied")
    return Sealed(found, body.pop(LOSS, None), prints, body)


def _are_fingerprints(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(paths, dict) and all(isinstance(print_, str) for print_ in paths.values())
        for paths in value.values()
    )


def _digest(content: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change with any part of the content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
