"""Errors that a user can correct. Commands print their message without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from gpt_jax.config.printable import printable


class UserError(ValueError):
    """A mistake of the user. Its message is "what is wrong: what to do", lower-case and without a final period.

    Control characters in it, which names and values in files can have, are shown as escapes.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(UserError):
    """An invalid configuration: an unknown key, a wrong type, or an illegal combination."""


class MissingFile(UserError, FileNotFoundError):
    """A file or folder that the user named does not exist."""


class Unreachable(UserError, ConnectionError):
    """A download failed because its server cannot be reached."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint to append to a message: `; did you mean "x"?` with the `names` closest to `name`, or all of `names`."""
    known = sorted(names)
    close = difflib.get_close_matches(name[:200], known, n=1)  # its time grows with the square of the length
    return f'; did you mean "{close[0]}"?' if close else f"; there are: {', '.join(known)}"
