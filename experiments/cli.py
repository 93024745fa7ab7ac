"""What the commands share: help that reads like a page, and mistakes that are answered in one sentence."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

USAGE_ERROR = 2
OUR_PACKAGES = ("gpt_jax", "experiments", "configs")


class UsageError(ValueError):
    """The command line is not right; the message says how to put it right."""


def run(main: Callable[[], int | None], page: str) -> None:
    """Parses the flags, calls `main` and exits with what it returns; `--help` prints `page` (and `--helpfull` all flags there are).

    A mistake of the user's becomes one sentence on stderr: exit code 2 where the command line or the configuration is wrong,
    else 1. What we did not foresee keeps its traceback.
    """

    def parse(argv: list[str]) -> list[str]:
        if any(arg in ("--help", "-help", "-h", "--helpshort") for arg in argv[1:]):
            print(page.strip())
            sys.exit(0)
        return _answer(_parse, argv)

    app.run(lambda _: sys.exit(_answer(main)), flags_parser=parse)


def required(name: str, what: str) -> Any:
    """The value of a flag that has no default.

    Raises:
      UsageError: it was not given.
    """
    value = getattr(flags.FLAGS, name)
    if value is None:
        raise UsageError(f"--{name} is required: {what}")
    return value


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        guess = f'; did you mean "--{error.flagvalue}"?' if error.flagvalue in flags.FLAGS else ""
        raise UsageError(f'there is no flag "--{error.flagname}"{guess or "; --help lists them"}') from None
    except (flags.Error, TypeError, AttributeError) as error:
        raise UsageError(str(error)) from None
    if len(rest) > 1:
        raise UsageError(f'"{rest[1]}" is no flag: write --name=value')
    return rest


def _answer(call: Callable[..., Any], *args: Any) -> Any:
    quiet()
    try:
        return call(*args)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        if not _is_answer(error):
            raise
        print(f"{os.path.basename(sys.argv[0]).removesuffix('.py')}: {_sentence(error)}", file=sys.stderr)
        sys.exit(USAGE_ERROR if type(error).__name__ in ("UsageError", "ConfigError") else 1)


def _is_answer(error: Exception) -> bool:
    """Whether an error speaks to the user: we raised it ourselves (an error from deep inside a library is a bug), or something is missing."""
    if isinstance(error, FileNotFoundError | ModuleNotFoundError):
        return True
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = "" if traceback is None else traceback.tb_frame.f_globals["__name__"]
    return module == "__main__" or module.split(".")[0] in OUR_PACKAGES


def _sentence(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is missing: pip install {error.name}"
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"{error.filename} does not exist"
    return " ".join(str(error).split())


def quiet() -> None:
    """Keeps what libraries log to themselves away from the user, and shows a warning as a line."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("jax").setLevel(logging.ERROR)

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning):
            print(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show


def module(name: str) -> Any:
    """A module of ours that a command needs only at its end."""
    return importlib.import_module(name)
