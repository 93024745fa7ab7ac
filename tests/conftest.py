"""The environment of every test: four fake CPU devices, a compilation cache, run-time shape checks, fixed seeds."""

import gc
import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

# XLA reads these once, when jax first makes a backend; the processes that tests start inherit them.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"  # programs of several devices in flight at once can deadlock
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4".strip()
os.environ["TPU_SKIP_MDS_QUERY"] = os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ["MPLBACKEND"] = "Agg"
# Kept in the checkout, shared by all workers and the processes they start; small programs too: tests compile hundreds.
XLA_CACHE = Path(__file__).resolve().parents[1] / ".pytest_cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(XLA_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import hypothesis
import jax
import jaxtyping
import numpy as np
import pytest
from jax._src import compiler

_checked = jaxtyping.jaxtyped


def _checked_once_defined(**options: Any) -> Any:
    """As `jaxtyping.jaxtyped`, but leaves alone functions within functions, which are made again at each call."""
    return lambda given: given if "<locals>" in given.__qualname__ else _checked(**options)(given)


jaxtyping.jaxtyped = _checked_once_defined  # which the hook calls in the modules that it changes
jaxtyping.install_import_hook("gpt_jax", "beartype.beartype")

# In the background of a shell Ctrl-C is ignored, and under nohup the end of the terminal, also by the processes that
# tests start and send such signals to.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# Tracing makes millions of objects that live long; with Python's own thresholds, searching them takes much of the time.
gc.set_threshold(100_000, 20, 20)

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=5000)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=2, help="how often tests/runs/test_kills.py kills a run")


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # modules and collected tests stay to the end


def _is_compiled_cheaply(item: pytest.Item) -> bool:
    return not any(item.get_closest_marker(name) for name in ("optimized", "slow", "plan"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not _is_compiled_cheaply(item))  # one change of level, which empties JAX's caches
    if importlib.util.find_spec("libtpu") is not None:
        return
    skip = pytest.mark.skip(reason="needs libtpu: pip install -c constraints.txt -e '.[plan]' (Linux x86-64 only)")
    for item in items:
        if item.get_closest_marker("plan"):
            item.add_marker(skip)


def _is_known(option: str) -> bool:
    """Whether this release of XLA has a compiler option; an unknown one would make every compilation fail."""
    try:
        jax.jit(lambda x: x + 1, compiler_options={option: False}).lower(1.0).compile()
    except Exception:
        return False
    return True


# Without LLVM's optimization, the emitters of fused kernels take most of the time to compile.
CHEAP = [(option, False) for option in ("xla_cpu_use_fusion_emitters",) if _is_known(option)]
_users_options = compiler.get_compile_options


def _compile_options(*args: Any, **kwargs: Any) -> Any:
    options = _users_options(*args, **kwargs)
    if jax.config.values["jax_disable_most_optimizations"]:
        options.env_option_overrides = [*options.env_option_overrides, *CHEAP]
    return options


compiler.get_compile_options = _compile_options  # JAX has no public default for a program's options


# Here whole runs and commands are made, most of whose time the checks of shapes would take. The same functions are
# checked where their own tests call them.
TESTS = Path(__file__).parent
WHOLE_RUNS = [
    TESTS / name
    for name in (
        "runs", "experiments", "interop", "ablation/test_runner.py", "ablation/test_tuning.py",
        "ablation/test_reproduce.py", "test_earlier_runs.py", "test_knobs_live.py",
    )
]  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Compiles what neither compares bits nor runs long at LLVM's level 0 and without XLA's fusion emitters.

    XLA's passes over the program stay the same. What is marked `optimized` or `slow`, and the processes that tests
    start, compile as users' programs do.
    """
    jaxtyping.config.update("jaxtyping_disable", any(map(item.path.is_relative_to, WHOLE_RUNS)))
    cheap = _is_compiled_cheaply(item)
    if jax.config.values["jax_disable_most_optimizations"] != cheap:
        jax.clear_caches()  # no program of the other level is reused
        jax.config.update("jax_disable_most_optimizations", cheap)


@pytest.fixture(autouse=True)
def _seed_numpy() -> None:
    np.random.seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of corpora and oracles that lies beside the checkout; tests that need it skip where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the shared folder beside the checkout ({folder})")
    return folder
