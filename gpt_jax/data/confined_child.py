"""The program of the interpreter that `confined.call` starts. Imports nothing of gpt_jax, and is never imported."""

import contextlib
import importlib.util
import json
import sys
from typing import Any

MOST_BYTES = 64 << 20  # of a result


def main() -> None:
    order = json.loads(sys.stdin.buffer.read())
    sys.path[:] = order["path"]
    spec = importlib.util.spec_from_file_location("confined_module", order["file"])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["confined_module"] = module
    spec.loader.exec_module(module)
    _limit(order["seconds"], order["megabytes"])
    sys.stdout.buffer.write(_outcome(module, order))
    sys.stdout.buffer.flush()


def _limit(seconds: int, megabytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    limits = {"CPU": int(used) + seconds, "AS": megabytes << 20, "FSIZE": 0, "CORE": 0}
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        # macOS refuses a limit on address space; there the caller watches the memory.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def _outcome(module: Any, order: dict[str, Any]) -> bytes:
    try:
        result = json.dumps({"result": getattr(module, order["function"])(*order["arguments"])}).encode()
        if len(result) <= MOST_BYTES:
            return result
        reason = "its result is too long"
    except MemoryError:
        reason = f"it takes more than {order['megabytes']} MB of memory"
    except RecursionError:
        reason = "it nests too deep"
    except BaseException as error:  # a panic in Rust is no Exception
        reason = " ".join(str(error)[:2000].split())[:300] or type(error).__name__
    return json.dumps({"error": reason}).encode()


if __name__ == "__main__":
    main()
