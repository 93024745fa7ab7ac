"""The commands. While one of them imports its packages, a signal ends it at once: there is nothing to save yet."""

import os
import signal
import sys
from types import FrameType


def _quit(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, b"\ninterrupted\n")
    finally:
        os._exit(128 + number)


# Python names the module "-m" until it has found it: this package is imported first, and by nothing else.
if sys.argv[:1] == ["-m"]:
    for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(_number) != signal.SIG_IGN:
            signal.signal(_number, _quit)
