"""What the processes of a run tell one another, so that all decide alike. Every process has to make the same calls.

With one process, none of it costs anything.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import numpy as np

from gpt_jax.config.errors import UserError

CHUNK_BYTES = 1024


def check_same(**values: str) -> None:
    """Checks that all processes have the same texts.

    Raises:
      UserError: on every process, if one of them has another text than process 0; the message names what differs.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    digests = np.stack([np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in values.values()])
    gathered = np.asarray(multihost_utils.process_allgather(digests))  # (processes, texts, 32)
    for i, name in enumerate(values):
        differing = [n for n in range(len(gathered)) if not np.array_equal(gathered[n, i], gathered[0, i])]
        if differing:
            raise UserError(
                f"process {differing[0]} has another {name.replace('_', ' ')} than process 0: start the same command,"
                " with the same files, on every host"
            )


def first_failed(failed: bool) -> int | None:
    """The number of the first process that has failed; None if none has."""
    if jax.process_count() == 1:
        return 0 if failed else None
    from jax.experimental import multihost_utils

    found = np.flatnonzero(np.asarray(multihost_utils.process_allgather(np.array([failed]))))
    return int(found[0]) if found.size else None


def first_says(value: Any) -> Any:
    """What process 0 has for `value`, a value of JSON. For what a clock or a file decides: these may differ."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    text = json.dumps(value).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = -(-length // CHUNK_BYTES) * CHUNK_BYTES  # few lengths: each one is a program
    told = multihost_utils.broadcast_one_to_all(np.frombuffer(text[:padded].ljust(padded), np.uint8))
    return json.loads(np.asarray(told, np.uint8).tobytes())


def meet(where: str) -> None:
    """Waits until all processes have come here; what process 0 has written before is there for all."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(where)
