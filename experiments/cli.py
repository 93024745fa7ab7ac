"""Shared by all commands: the help page, the configuration from flags, and one-sentence answers to user errors."""

from __future__ import annotations

import difflib
import logging
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from experiments import config_file
from gpt_jax.config import Config
from gpt_jax.config.conversion import from_config_dict
from gpt_jax.config.disk import disk_fault
from gpt_jax.config.errors import ConfigError, UserError
from gpt_jax.config.printable import printable
from gpt_jax.runs import interrupt, processes, terminal
from gpt_jax.runs.folder import FolderGone
from gpt_jax.runs.init_from import completed
from gpt_jax.runs.lease import LeaseLost

FAILURE, USAGE_ERROR, SAVED = 1, 2, processes.TEMPORARY
INTERRUPTED = tuple(128 + number for number in (*interrupt.SIGNALS, interrupt.OUTPUT_GONE))  # before anything to save
OWN_PACKAGES = ("gpt_jax", "experiments", "configs")  # a missing module of these is a bug
PROCESSES = """
Several hosts compute one command together: start it on each of them. On the hosts of a TPU slice, under SLURM
(srun), in GKE and under Open MPI the processes find one another. Elsewhere, give each of them

  --coordinator=HOST:PORT --num_processes=N --process_id=I

where HOST has process 0, PORT is free there, and I counts from 0 to N − 1. All hosts must see the same
--workdir. Process 0 alone prints. --start_timeout=SECONDS (default: {seconds}) is how long they wait for one
another. When one of them fails, all end with its exit code; when one dies or does not come, with 75: start all
again.
"""
_switched_off: list[str] = []


class UsageError(UserError):
    """The command line is wrong."""


def run(main: Callable[[], int | None], page: str, several: str | None = None, first: str | None = None) -> None:
    """Parses the flags, calls `main`, and exits with the code that it returns.

    `--help` prints `page`, and `--helpfull` all flags. `several` names a multi-string flag that takes all words up to
    the next flag, `first` a flag whose value may stand first, without the flag's name.

    A user error is printed to stderr as one sentence; the exit code is 2 if the command line or the configuration is
    wrong, else 1. Any other exception keeps its traceback. After `define_processes`, `main` runs when all processes of
    the command have met, and if one of them fails, all end.
    """

    def parse(argv: list[str]) -> list[str]:
        if any(arg in ("--help", "-help", "-h", "--helpshort") for arg in argv[1:]):
            told = PROCESSES.format(seconds=processes.START_SECONDS).rstrip() if "coordinator" in flags.FLAGS else ""
            _answer(print, f"{page.strip()}\n{told}".rstrip())
            sys.exit(0)
        if first is not None and argv[1:] and not argv[1].startswith("-"):
            argv = [argv[0], f"--{first}={argv[1]}", *argv[2:]]
        return _answer(_parse, argv if several is None else _spread(argv, several))

    begin()
    app.run(lambda _: sys.exit(_ended(_answer(_together, main))), flags_parser=parse)


def _ended(code: int | None) -> int | None:
    interrupt.finish()
    return code


def begin() -> None:
    """From now on signals, and an output that vanishes, end the command in order; see `runs/interrupt.py`."""
    interrupt.begin(_name())
    terminal.guard()


ONCE = ("--restart",)  # what no command that is printed repeats
MEETING = ("--coordinator", "--num_processes", "--process_id", "--start_timeout")


def define_processes() -> None:
    """Defines the flags of a command that several processes compute, and with them lets it find its other processes."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT, where the processes meet: a free port of process 0.")
    flags.DEFINE_integer("num_processes", None, "The number of processes.")
    flags.DEFINE_integer("process_id", None, "The number of this process, from 0.")
    flags.DEFINE_integer("start_timeout", processes.START_SECONDS, "Seconds to wait for the others.", lower_bound=1)


def _together(main: Callable[[], int | None]) -> int | None:
    """`main()`, once all processes of the command have met; returns when all have come to their ends."""
    values = flags.FLAGS
    if "coordinator" not in values:
        return main()
    processes.join(_name(), values.coordinator, values.num_processes, values.process_id, values.start_timeout)
    code = main()
    processes.end()
    return code


def _name() -> str:
    return Path(sys.argv[0]).stem


def define_config() -> None:
    """Defines `--config=FILE.py[:ARG]`, and `--config.KEY=VALUE` for each of its settings."""
    config_flags.DEFINE_config_file(
        "config", None, "The configuration file.", accept_new_attributes=True, lock_config=False
    )


def config_from_flags() -> Config:
    """The configuration in the file of `--config`, with the settings changed by `--config.KEY=VALUE`.

    Raises:
      ConfigError: the configuration is invalid; see `gpt_jax.config.conversion.from_dict`.
      UsageError: `--config` is missing, or names a file that does not exist.
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
    """The value of the flag `name`; `what` describes it in the message.

    Raises:
      UsageError: the flag was not given.
    """
    value = getattr(flags.FLAGS, name)
    if value is None:
        raise UsageError(f"--{name} is required: {what}")
    return value


def command(*changes: str, without: Sequence[str] = ()) -> str:
    """This command line with the flags `changes` added, or replaced if they are there already, and `without` some; it
    starts one process, and goes on with a run.
    """
    names = {change.split("=")[0] for change in changes} | {*without, *MEETING, *ONCE}
    kept = [arg for arg in sys.argv[1:] if arg.split("=")[0] not in names]
    return shlex.join(["python", "-m", f"experiments.{_name()}", *kept, *changes])


def _spread(argv: list[str], name: str) -> list[str]:
    """Rewrites `--name A B` as `--name=A --name=B`."""
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
    # Settings that are None are removed here, because absl would fail to parse None as a number.
    _switched_off[:] = [m.group(1) for arg in argv if (m := re.fullmatch(r"--config\.([\w.]+)=None", arg))]
    try:
        with config_file.faults(argv):
            rest = flags.FLAGS([arg for arg in argv if not re.fullmatch(r"--config\.[\w.]+=None", arg)])
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):
            raise UsageError("--config is required: a configuration file, such as configs/quickstart.py") from None
        close = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
        hint = f'did you mean "--{close[0]}"?' if close else "--help lists them"
        raise UsageError(f'there is no flag "--{error.flagname}": {hint}') from None
    except flags.Error as error:
        raise UsageError(str(error)) from None
    except KeyError as error:  # from ml_collections: an unknown group of settings
        raise UsageError(f"unknown setting in --config: {' '.join(str(error.args[0]).split())}") from None
    if len(rest) > 1:
        raise UsageError(f'"{rest[1]}" is not a flag: write --name=value')
    return rest


def _answer(call: Callable[..., Any], *args: Any) -> Any:
    """`call(*args)`; a user error, or Ctrl-C, ends the process with one line on stderr and an exit code."""
    quiet()
    try:
        result = call(*args)
        terminal.flush()
        return interrupt.code_after_save(SAVED) if result == SAVED else result
    except KeyboardInterrupt as error:
        code, reason = interrupted(error)
    except Exception as raised:
        terminal.end()
        failure = origin(raised)
        sentence = explanation(failure)
        if sentence is None or failure.__cause__ is not None:
            processes.explain_error()
        if sentence is not None:
            print(f"{_name()}: {sentence}", file=sys.stderr)
            code = USAGE_ERROR if isinstance(failure, UsageError | ConfigError) else FAILURE
            if isinstance(failure, LeaseLost):  # at once: threads still write a checkpoint
                processes.quit(SAVED, sentence)
            if isinstance(failure, FolderGone) or disk_fault(failure) is not None:  # these threads can't end in order
                processes.quit(code, sentence)
            reason = sentence
        elif processes.are_several():
            traceback.print_exc()
            code, reason = FAILURE, " ".join(f"{type(failure).__name__}: {failure}".split())[:400]
        else:
            raise
    processes.fail(code, reason)
    sys.exit(code)


def origin(error: Exception) -> Exception:
    """The loss of the folder, if the error came in its wake: saves that are under way then fail too."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, FolderGone | LeaseLost):
            return link
        link = link.__cause__ or link.__context__
    return error


def interrupted(error: KeyboardInterrupt) -> tuple[int, str]:
    """Says on stderr that a command is interrupted; its exit code, and the reason for its other processes."""
    terminal.end()
    interrupt.finish()
    print("\ninterrupted", file=sys.stderr)
    return error.code if isinstance(error, interrupt.Interrupted) else 128 + signal.SIGINT, "interrupted"


def explanation(error: Exception) -> str | None:
    """The sentence that answers a user error; None for any other exception, which is a bug and needs its traceback.

    Besides `UserError`, users cause operating system errors about a file (full disks, missing permissions), which
    libraries wrap in errors of their own, and lack packages that a configuration file or an option imports.
    """
    match error:
        case UserError():
            return printable(" ".join(str(error).split()))
        case _ if (fault := disk_fault(error)) is not None:
            return printable(" ".join(fault.split()))
        case OSError(filename=name) if name is not None:  # without a name: a broken pipe or socket
            return printable(f"{name}: {error.strerror}")
        case ModuleNotFoundError(name=str(name)) if name.partition(".")[0] not in OWN_PACKAGES:
            return f"the Python package {name} is missing: install it, for example with pip install {name}"
    return None


def quiet() -> None:
    """Hides the log messages of libraries, and shows each UserWarning as one line.

    Orbax also logs, with tracebacks, the errors that it raises.
    """
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("jax").setLevel(logging.ERROR)

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning) and processes.speaks():
            print(f"warning: {printable(str(message))}", file=sys.stderr)

    warnings.showwarning = show
    sys.unraisablehook = _report


def _report(found: Any) -> None:
    """Python's own, but for what tensorstore's threads say after a save has failed, which is reported by itself."""
    if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(found)
