"""What a save that fails comes out as: one sentence, on the main thread, and never "done"."""

from __future__ import annotations

import errno
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from absl import logging as absl_logging

from gpt_jax.config.errors import UserError

TURN_SECONDS = 2e-4
FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}


class SaveFailed(UserError):
    """A checkpoint could not be written. The checkpoints before it are as they were."""


@contextmanager
def brisk() -> Iterator[None]:
    """Lets threads take turns sooner while Orbax begins a save. Orbax starts a dozen threads there and waits until each
    runs, and a thread that wants Python's lock waits a whole interval for it, 5 ms by default.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(min(usual, TURN_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


@contextmanager
def answered(step: int | None, path: str) -> Iterator[None]:
    """Turns whatever Orbax raises in the block into `SaveFailed` for the checkpoint of `step` in `path`."""
    try:
        yield
    except SaveFailed:
        raise
    except Exception as error:  # many types: of the system, of tensorstore, of JAX where another process failed
        raise SaveFailed(
            f"the checkpoint of step {step} could not be written to {path} ({reason(error)}): the checkpoints before it"
            " are intact; remove the cause, and the same command goes on from the newest one"
        ) from error  # which may be the end of another process


def reason(error: BaseException) -> str:
    """Why a file could not be written, in a few words."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for one in chain:
        if isinstance(one, OSError) and one.errno is not None:
            return _words(one.errno)
    text = " ".join(str(error).split())
    if (found := re.search(r"os_error_code='(\d+)'", text)) is not None:  # tensorstore's
        return _words(int(found.group(1)))
    shown = text if len(text) <= 200 else f"… {text[-200:]}"  # the cause comes last
    return f"{type(error).__name__}: {shown}" if text else type(error).__name__


def _words(number: int) -> str:
    return FULL[number] if number in FULL else os.strerror(number)


def hush() -> None:
    """Keeps Orbax from printing a traceback of each error that it also raises, once per thread and item, and from
    warning of a folder that it was told only to read.
    """
    logger = absl_logging.get_absl_logger()
    if _is_no_echo not in logger.filters:
        logger.addFilter(_is_no_echo)
        sys.unraisablehook = _without_echoes(sys.unraisablehook)


def _is_no_echo(record: logging.LogRecord) -> Any:
    is_echo = record.levelno >= logging.ERROR or str(record.msg).startswith("Given directory is read only")
    return not ("orbax" in record.pathname and is_echo)


def _without_echoes(shown: Callable[[Any], None]) -> Callable[[Any], None]:
    """Shows what `shown` does, but not what follows from the first error of several writes or reads at once: a write
    that ends after the loop that waited for all was closed, and further reads of Orbax that fail.
    """

    def hook(unraisable: Any) -> None:
        error, source = unraisable.exc_value, unraisable.object
        is_late = source is None and isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if not (is_late or (inspect.iscoroutine(source) and "orbax" in source.cr_code.co_filename)):
            shown(unraisable)

    return hook
