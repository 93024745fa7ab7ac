"""What the commands share: help that reads like a page, configurations from flags, and mistakes that are answered in
one sentence.
"""

from __future__ import annotations

import difflib
import logging
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from gpt_jax.config import Config
from gpt_jax.config.conversion import from_config_dict
from gpt_jax.config.errors import ConfigError, UserError
from gpt_jax.runs.init_from import completed

FAILURE, USAGE_ERROR, INTERRUPTED, SAVED = 1, 2, 130, 75
_switched_off: list[str] = []


class UsageError(UserError):
    """The command line is not right; the message says how to put it right."""


def run(main: Callable[[], int | None], page: str, several: str | None = None) -> None:
    """Parses the flags, calls `main` and exits with what it returns; `--help` prints `page` (and `--helpfull` all flags
    there are). The flag named `several`, a multi-string, takes all the words that follow it.

    A mistake of the user's becomes one sentence on stderr: exit code 2 where the command line or the configuration is
    wrong, else 1. What nobody foresaw keeps its traceback.
    """

    def parse(argv: list[str]) -> list[str]:
        if any(arg in ("--help", "-help", "-h", "--helpshort") for arg in argv[1:]):
            print(page.strip())
            sys.exit(0)
        return _answer(_parse, argv if several is None else _spread(argv, several))

    app.run(lambda _: sys.exit(_answer(main)), flags_parser=parse)


def define_config() -> None:
    """Defines `--config=FILE.py[:argument]`, whose settings `--config.KEY=VALUE` changes."""
    config_flags.DEFINE_config_file(
        "config", None, "The configuration file.", accept_new_attributes=True, lock_config=False
    )


def config_from_flags() -> Config:
    """The configuration that the flags describe.

    Raises:
      ConfigError: it can't be; see `gpt_jax.config.conversion.from_dict`.
      UsageError: there is no such file.
    """
    flag: Any = flags.FLAGS["config"]
    file = flag.config_filename if flag.present else None
    if file is None:
        raise UsageError("--config is required: a configuration file, such as configs/quickstart.py")
    path = file.split(":")[0]
    if not Path(path).is_file():
        raise UsageError(f"the configuration file {path} does not exist")
    values = flags.FLAGS.config
    if not isinstance(values, ConfigDict):
        raise ConfigError(f"get_config() in {path} must return a ConfigDict, as to_config_dict(Config(…)) does")
    overridden = dict(config_flags.get_override_values(flag))
    for key in _switched_off:
        *groups, name = key.split(".")
        group = values
        for part in groups:
            if part not in group:
                raise ConfigError(f'unknown setting "{key}"')
            group = group[part]
        with group.ignore_type():
            group[name] = None
        overridden[key] = None
    return from_config_dict(Config, ConfigDict(completed(values.to_dict())), overridden)


def required(name: str, what: str) -> Any:
    """The value of a flag that has no default.

    Raises:
      UsageError: it was not given.
    """
    value = getattr(flags.FLAGS, name)
    if value is None:
        raise UsageError(f"--{name} is required: {what}")
    return value


def command(*changes: str) -> str:
    """This command line with some flags in the place of those of the same names."""
    names = {change.split("=")[0] for change in changes}
    kept = [arg for arg in sys.argv[1:] if arg.split("=")[0] not in names]
    return shlex.join(["python", "-m", f"experiments.{Path(sys.argv[0]).stem}", *kept, *changes])


def _spread(argv: list[str], name: str) -> list[str]:
    """`--name A B` as `--name=A --name=B`."""
    result, is_inside = [], False
    for arg in argv:
        if is_inside and not arg.startswith("-"):
            result.append(f"--{name}={arg}")
            continue
        is_inside = arg.split("=")[0] == f"--{name}"
        if arg != f"--{name}":
            result.append(arg)
    return result


def _parse(argv: list[str]) -> list[str]:
    # absl would read the None of a setting that holds a number as a number.
    _switched_off[:] = [m.group(1) for arg in argv if (m := re.fullmatch(r"--config\.([\w.]+)=None", arg))]
    try:
        rest = flags.FLAGS([arg for arg in argv if not re.fullmatch(r"--config\.[\w.]+=None", arg)])
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):
            raise UsageError("--config is required: a configuration file, such as configs/quickstart.py") from None
        close = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
        hint = f'did you mean "--{close[0]}"?' if close else "--help lists them"
        raise UsageError(f'there is no flag "--{error.flagname}"; {hint}') from None
    except flags.Error as error:
        raise UsageError(str(error)) from None
    except KeyError as error:  # ml_collections: a group of settings that there is not
        raise UsageError(f"unknown setting in --config: {' '.join(str(error.args[0]).split())}") from None
    if len(rest) > 1:
        raise UsageError(f'"{rest[1]}" is no flag: write --name=value')
    return rest


def _answer(call: Callable[..., Any], *args: Any) -> Any:
    quiet()
    try:
        return call(*args)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (UserError, OSError, ModuleNotFoundError) as error:
        if not isinstance(error, UserError | ModuleNotFoundError) and error.filename is None:
            raise  # from deep inside a library, and nothing that a person named
        command = Path(sys.argv[0]).stem
        print(f"{command}: {_sentence(error)}", file=sys.stderr)
        sys.exit(USAGE_ERROR if isinstance(error, UsageError | ConfigError) else FAILURE)


def _sentence(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"the Python package {error.name} is missing: install it, for example with pip install {error.name}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def quiet() -> None:
    """Keeps what libraries log to themselves away from the user, and shows a warning as one line."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("jax").setLevel(logging.ERROR)

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning):
            print(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show
