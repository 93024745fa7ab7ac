"""The commands. `BEGAN` is the time, by `time.monotonic`, at which this process began to import them."""

import time

BEGAN = time.monotonic()
