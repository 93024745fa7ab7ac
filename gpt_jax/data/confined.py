"""Runs a function on untrusted input in a fresh interpreter, with limits on memory, time and files.

The function lives in a module that imports nothing of gpt_jax, so that the interpreter starts in about 0.1 s. Nothing
is forked: the caller may have JAX, threads and devices. The interpreter sees none of the caller's environment but what
Python needs to start, and writes nothing to files; what it may read is what the user may.

Memory is bounded by the system on Linux (RLIMIT_AS) and, on macOS, which does not enforce that, by asking every 50 ms
what the interpreter holds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from gpt_jax.config.errors import UserError

CHILD = Path(__file__).with_name("confined_child.py")
INHERITED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ", "SYSTEMROOT")
START_SECONDS = 60.0  # more than the function may take: on a busy machine Python itself can take long to start
ASK_SECONDS = 0.05


class Refused(UserError):
    """The function failed, or went beyond a limit. The message is a reason only, to be put into a sentence."""


def call(module: ModuleType, function: str, *arguments: Any, seconds: int, megabytes: int) -> Any:
    """Returns `module.function(*arguments)`, computed in another interpreter; arguments and result are JSON values.

    Args:
      module: a module with a file that imports only the standard library and installed packages.
      function: the name of a function in it.
      arguments: what it is called with.
      seconds: of processor time that the call may take.
      megabytes: of memory that the interpreter may have.

    Raises:
      Refused: the function raised, took too much time or memory, or ended its interpreter.
    """
    assert module.__file__ is not None
    order = {
        "file": module.__file__,
        "path": [entry for entry in sys.path if entry],
        "function": function,
        "arguments": arguments,
        "seconds": seconds,
        "megabytes": megabytes,
    }
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    # One arena: each further one reserves address space, which is what the limit counts.
    environment |= {"MALLOC_ARENA_MAX": "1", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    answer, reason = _answer(process, json.dumps(order).encode(), seconds, megabytes)
    if reason is None and process.returncode == 0:
        try:
            outcome = json.loads(answer)
            if "result" in outcome:
                return outcome["result"]
            reason = str(outcome["error"])
        except (ValueError, TypeError, KeyError, RecursionError):
            reason = "it breaks the interpreter that reads it"
    raise Refused(reason or _ended(process.returncode, seconds))


def _answer(process: subprocess.Popen[bytes], order: bytes, seconds: int, megabytes: int) -> tuple[bytes, str | None]:
    """What the process wrote, and why it was ended; None if it ended itself."""
    end, sent = time.monotonic() + seconds + START_SECONDS, False
    try:
        while True:
            try:
                return process.communicate(None if sent else order, timeout=_pause(end))[0], None
            except subprocess.TimeoutExpired:
                sent = True
            if time.monotonic() > end:
                return b"", f"it takes more than {seconds} seconds"
            if sys.platform == "darwin" and _resident(process.pid) > megabytes << 20:
                return b"", f"it takes more than {megabytes} MB of memory"
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _pause(end: float) -> float:
    left = max(end - time.monotonic(), 0.0)
    return min(left, ASK_SECONDS) if sys.platform == "darwin" else left


def _resident(pid: int) -> int:
    """The memory of a process in bytes; 0 if it has ended."""
    found = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True)
    return int(found.stdout.strip() or 0) << 10


def _ended(code: int, seconds: int) -> str:
    if code in (-getattr(signal, "SIGXCPU", 0), -getattr(signal, "SIGKILL", 0)):
        return f"it takes more than {seconds} seconds or too much memory"
    return "it breaks the interpreter that reads it"
