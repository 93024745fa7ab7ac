"""Faults of disks: full, read-only, without permission. They are the user's to mend, so a sentence answers them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

_FULL, _CLOSED = "free space there, or choose another folder", "choose a folder that can be written to"
FAULTS = {  # errors of a disk, and what to do
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: _CLOSED,
    errno.EACCES: f"change its permissions, or {_CLOSED}",
    errno.EPERM: f"change its permissions, or {_CLOSED}",
    errno.EIO: f"check the disk, or {_CLOSED}",
    errno.ESTALE: "mount the network file system again",
    errno.EMFILE: "allow more open files (ulimit -n)",
}
_SAID_BY_LIBRARIES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # in errors of types of their own


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Names `path` in an error of the disk that lacks a name, as that of a write to a full disk does."""
    try:
        yield
    except OSError as error:
        if error.errno is None and "written" in str(error):  # by NumPy: "512 requested and 0 written"
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if error.errno in FAULTS and error.filename is None:
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise


def disk_fault(error: BaseException) -> str | None:
    """The sentence on the fault of a disk that an error, or what it came from, is about; None if there is none."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in FAULTS and link.filename is not None:
            return f"{link.filename} cannot be used ({link.strerror}): {FAULTS[link.errno]}"
        for number in _SAID_BY_LIBRARIES:
            if (said := os.strerror(number)) in str(link):
                path = re.search(r"/[^\s'\",:;)\]]+", str(link))
                return f"{path[0] if path else 'a file'} cannot be written ({said}): {FAULTS[number]}"
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return None
