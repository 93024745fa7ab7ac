"""Mistakes that a user can put right, and the sentences that say how."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user's. The message is one sentence that says what is wrong and what to do."""


class ConfigError(UserError):
    """An invalid configuration: an unknown key, a wrong type, or an illegal combination."""


class MissingFile(UserError, FileNotFoundError):
    """A file or a folder that the user named and that is not there."""


class Unreachable(UserError, ConnectionError):
    """A download that this machine cannot make."""


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean "x"?` for the nearest of `names`, or the list of them all."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1)
    return f'; did you mean "{close[0]}"?' if close else f"; there are: {', '.join(known)}"
