"""The commands. `BEGAN` is the time, by `time.monotonic`, at which this process began to import them.

While a command imports its packages, a signal ends it at once: there is nothing to save yet.
"""

import os
import signal
import sys
import time
from types import FrameType

BEGAN = time.monotonic()


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
