"""Calls gcloud: with a time limit, again where the network fails, and with its error messages sorted by what helps."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

from experiments.launch.clock import Clock, Timing
from gpt_jax.config.errors import UserError

Kind = Literal["missing", "taken", "capacity", "quota", "refused", "unreachable"]
TRIES = 4

# The first pattern that is found in what gcloud wrote to stderr decides.
PATTERNS: tuple[tuple[Kind, str], ...] = (
    ("taken", r"ALREADY_EXISTS|already exists"),
    ("capacity", r"no more capacity|not enough resources|insufficient capacity|stockout|out of capacity"),
    ("quota", r"[Qq]uota"),
    (
        "unreachable",
        r"UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|\b50[0-4]\b|\b429\b|timed out|[Cc]onnection|resolve|network",
    ),
    ("missing", r"NOT_FOUND|not found|matched no objects|\b404\b"),
    (
        "refused",
        r"PERMISSION_DENIED|[Pp]ermission|INVALID_ARGUMENT|[Ii]nvalid|unrecognized|credential|auth login|\b403\b",
    ),
)


class CloudError(UserError):
    """gcloud failed; `kind` says what would help."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Gcloud:
    """The gcloud command."""

    def __init__(self, clock: Clock, timing: Timing) -> None:
        self._clock, self._timing = clock, timing
        self._chance = random.Random()

    @staticmethod
    def is_installed() -> bool:
        return shutil.which("gcloud") is not None

    def json(self, command: Sequence[str]) -> Any:
        """What a command that ends in --format=json prints."""
        text = self.call(command)
        return json.loads(text) if text.strip() else []

    def call(self, command: Sequence[str], text: str | None = None) -> str:
        """What a command prints, with `text` as its input. A failure of the network is tried again a few times.

        Raises:
          CloudError: it failed.
        """
        for failures in range(1, TRIES + 1):
            try:
                return self._once(command, text)
            except CloudError as error:
                if error.kind != "unreachable" or failures == TRIES:
                    raise
                self._clock.sleep(self._timing.wait(failures, self._chance))
        raise AssertionError("unreachable")

    def _once(self, command: Sequence[str], text: str | None) -> str:
        # A session of its own: Ctrl-C in the terminal is for the launcher, which may be deleting a slice.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"CLOUDSDK_CORE_DISABLE_PROMPTS": "1"},
            text=True,
            errors="surrogateescape",  # logs hold any bytes
            start_new_session=True,
        )
        try:
            out, err = process.communicate(text, self._timing.call)
        except KeyboardInterrupt:  # a request that is on its way must arrive before what undoes it
            with suppress(subprocess.TimeoutExpired):
                process.wait(self._timing.finish)
            raise
        except subprocess.TimeoutExpired:
            raise CloudError("unreachable", f"gcloud gave no answer for {self._timing.call:.0f} seconds") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            raise CloudError(kind_of(err), sentence(err))
        return out


def kind_of(stderr: str) -> Kind:
    """What kind of failure gcloud's message tells of. One that is not known is treated as the network's."""
    return next((kind for kind, pattern in PATTERNS if re.search(pattern, stderr)), "unreachable")


def sentence(stderr: str) -> str:
    """gcloud's message in one line, without the part that names the command."""
    lines = [line.strip() for line in stderr.strip().splitlines()]
    start = next((i for i, line in enumerate(lines) if line.startswith("ERROR:")), 0)
    text = re.sub(r"^ERROR: (\([\w.-]+\) )?", "", " ".join(lines[start:]))
    return text[:400] or "gcloud failed without a message"
