"""The file of `--config`: a program of the user's, whose faults are answered in one sentence that names its line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from absl import flags

from gpt_jax.config.errors import ConfigError, MissingFile, UserError
from gpt_jax.config.foreign import read_bytes


@contextmanager
def faults(argv: Sequence[str]) -> Iterator[None]:
    """Checks the configuration file among the arguments, and answers what it raises while flags are parsed.

    Raises:
      ConfigError: it is not a file, not Python, or fails.
    """
    path = next((arg.split("=", 1)[1].split(":")[0] for arg in argv if arg.startswith(("--config=", "-config="))), None)
    if path is not None:
        _check(path)
    try:
        yield
    except Exception as error:
        cause: BaseException = error
        while cause.__context__ is not None:  # the flags' libraries raise others in place of what the file raises
            cause = cause.__context__
        if path is None or isinstance(cause, flags.Error | ModuleNotFoundError) or not _is_of_file(error, cause, path):
            raise
        if isinstance(cause, UserError):
            raise cause from None
        lines = _lines(cause, path)
        where = f" at line {lines[-1]}" if lines else ""
        raise ConfigError(f"the configuration file {path} fails{where} ({_named(cause)}): correct it") from None


def _check(path: str) -> None:
    try:
        compile(read_bytes(path), path, "exec")
    except MissingFile:
        raise ConfigError(f"the configuration file {path} does not exist") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, UserError):
            raise ConfigError(str(error)) from None
        line = f" at line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else _named(error)
        raise ConfigError(f"the configuration file {path} is not Python{line} ({reason}): correct it") from None


def _is_of_file(error: BaseException, cause: BaseException, path: str) -> bool:
    return bool(_lines(cause, path)) or "Error whilst parsing config file" in str(error) or "get_config" in str(cause)


def _lines(error: BaseException, path: str) -> list[int]:
    """The lines of the file in the traceback of an error."""
    return [frame.lineno or 0 for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(path)]


def _named(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
