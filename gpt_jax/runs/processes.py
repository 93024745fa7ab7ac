"""Several processes, each with its devices, that compute one run: how they find one another and how they end.

`join` comes before anything that makes JAX look for devices. One process alone pays nothing for any of this: no socket
is opened and JAX's coordination service is not started.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import jax

from gpt_jax.config.errors import ConfigError, UserError
from gpt_jax.runs import consensus

if TYPE_CHECKING:
    from gpt_jax.runs.watch import Watch

TEMPORARY = 75  # sysexits' EX_TEMPFAIL: the exit code that says that the same command goes on
START_SECONDS = 300
SHUTDOWN_SECONDS = 3600  # how long a process that has ended waits for those that write their part of a checkpoint still
METADATA_SECONDS = 5.0
QUIT_SECONDS = 5.0  # for the last words


@dataclass(frozen=True)
class _Joined:
    index: int
    count: int
    watch: Watch
    preempted: Any  # JAX's handler of SIGTERM


_joined: _Joined | None = None


# ── finding one another ──────────────────────────────────────────────────────────────────────────────────────────────


def surroundings() -> tuple[str, int | None] | None:
    """What started this process as one of several, and their number if it is known; None for a process alone.

    Only a machine with TPUs is asked over its network, for the hosts of its slice.
    """
    e = os.environ
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in e for name in slurm) and int(e["SLURM_NTASKS"]) > 1:
        return "SLURM", int(e["SLURM_NTASKS"])
    if "OMPI_COMM_WORLD_SIZE" in e and int(e["OMPI_COMM_WORLD_SIZE"]) > 1:
        return "Open MPI", int(e["OMPI_COMM_WORLD_SIZE"])
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
        if name in e:
            slices = int(e["MEGASCALE_NUM_SLICES"]) if "MEGASCALE_NUM_SLICES" in e else 1
            count = slices * len(e[name].split(","))
            return ("GKE", count) if count > 1 else None
    if "TPU_SKIP_MDS_QUERY" not in e:  # which JAX sets, once it is imported, on a machine without TPUs
        count = _tpu_hosts()
        if count > 1:
            return "a TPU slice", count
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= e.keys():
        return "a Kubernetes job", None
    return None


def _tpu_hosts() -> int:
    """The number of hosts of all slices of this TPU VM, by its metadata; 1 if it has none."""
    slices = re.search(r"MEGASCALE_NUM_SLICES:\s*'?(\d+)", _metadata("tpu-env"))
    return len(_metadata("worker-network-endpoints").split(",")) * (int(slices[1]) if slices else 1)


def _metadata(name: str) -> str:
    server = os.environ["GCE_METADATA_IP"] if "GCE_METADATA_IP" in os.environ else "metadata.google.internal"
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers={"Metadata-Flavor": "Google"}), timeout=METADATA_SECONDS
        ) as answer:
            return answer.read().decode()
    except OSError:  # no virtual machine of Google's, or one that is no TPU VM
        return ""


def check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Raises ConfigError unless all three are given and valid, or none is."""
    given = (coordinator, num_processes, process_id)
    if given == (None, None, None):
        return
    if coordinator is None or num_processes is None or process_id is None:
        raise ConfigError("--coordinator, --num_processes and --process_id go together: give all three, or none")
    if not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise ConfigError(f"--coordinator must be HOST:PORT, a host and a free port of process 0, not {coordinator}")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id is {process_id}, but {num_processes} processes are numbered from 0 to {num_processes - 1}:"
            " give each process its own number"
        )


def join(
    name: str, coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None,
    seconds: int = START_SECONDS,
) -> None:  # fmt: skip
    """Joins the other processes of this command, if there are any; they are found by what started them, or by the three
    arguments. From then on this process ends, with a sentence, when one of the others does.

    `name` is that of the command, for messages. Process 0 alone writes to standard output.

    Raises:
      ConfigError: the three arguments are incomplete or wrong.
      UserError: JAX cannot find the other processes. When they don't come within `seconds`, the process is ended.
    """
    check(coordinator, num_processes, process_id)
    if coordinator is None:
        found = surroundings()
        if found is None:
            return
        where, count = found
        # Open MPI 5 does not say where process 0 is; with mpi4py, the processes can ask one another.
        asks = where == "Open MPI" and "OMPI_MCA_orte_hnp_uri" not in os.environ and _has("mpi4py")
        options: dict[str, Any] = {"cluster_detection_method": "mpi4py"} if asks else {}
        who = f"the {'' if count is None else f'{count} '}processes of {where}"
    elif num_processes == 1:
        return
    else:
        options = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
        options["cluster_detection_method"] = "deactivate"
        who = f"the {num_processes} processes that are to meet at {coordinator}"
    late = threading.Timer(seconds, _give_up, [name, who, seconds])
    late.daemon = True
    late.start()
    try:
        # JAX's own time-out aborts with a C++ stack trace, so ours comes before it.
        jax.distributed.initialize(
            initialization_timeout=seconds + 60, shutdown_timeout_seconds=SHUTDOWN_SECONDS, **options
        )
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise UserError(
            f"this is one of {who}, but they cannot meet ({' '.join(str(error).split())[:200]}): give every process"
            " --coordinator=HOST:PORT, with a free port on the host of process 0, --num_processes and --process_id"
        ) from None
    else:
        _begin_watch(name, None if coordinator is None else coordinator.rpartition(":")[0])
    finally:
        late.cancel()


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _give_up(name: str, who: str, seconds: int) -> NoReturn:
    os.write(
        2,
        f"{name}: not all of {who} have come within {seconds} seconds: check that the command runs on every host, each"
        " with its own --process_id if you give them, and that all can reach process 0; --start_timeout waits"
        " longer\n".encode(),
    )
    os._exit(TEMPORARY)


def _begin_watch(name: str, host: str | None) -> None:
    """Starts the watch of the other processes, and leaves SIGTERM and standard output as a command expects them."""
    from gpt_jax.runs.watch import Watch

    global _joined
    index, count = jax.process_index(), jax.process_count()
    watch = Watch(name, index, count, TEMPORARY)
    hosts = _own_hosts() if host is None else [host, *_own_hosts()]
    address = consensus.first_says(watch.listen(hosts) if index == 0 else None)
    if index:
        watch.connect(address)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # C++ libraries print too
    delay_abort()
    # JAX takes SIGTERM for a notice of preemption, which only a training loop asks for: it gets the handler back there.
    _joined = _Joined(index, count, watch, _libc().signal(signal.SIGTERM, None))


def delay_abort() -> None:
    """Makes an abort of this process wait for 6 seconds: JAX aborts as soon as process 0 has died, and the watch has to
    say what happened.
    """
    libc = _libc()
    # The C library calls `sleep` with the number of the signal. Python code cannot run in a handler of an abort.
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _own_hosts() -> list[str]:
    """Addresses of this host for others: that of the network interface which leads outside, and its name."""
    hosts = [socket.gethostname()]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # an address for documentation; nothing is sent
        hosts.insert(0, probe.getsockname()[0])
    return hosts


def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    return libc


def are_several() -> bool:
    """Whether this process has joined others."""
    return _joined is not None


def speaks() -> bool:
    """Whether this process prints what concerns all: whether it is process 0."""
    return _joined is None or _joined.index == 0


# ── while they run ───────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def preemption_notices() -> Iterator[None]:
    """While it is open, SIGTERM is a notice that `multihost_utils.reached_preemption_sync_point` shares with all."""
    if _joined is None:
        yield
        return
    libc = _libc()
    before = libc.signal(signal.SIGTERM, _joined.preempted)
    try:
        yield
    finally:
        libc.signal(signal.SIGTERM, before)


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def explain_error() -> None:
    """After an error that is no user's: if the end of another process caused it, ends this process with a sentence."""
    if _joined is not None:
        _joined.watch.explain()


def end() -> None:
    """Waits for the other processes, which have to come to their ends too."""
    if _joined is not None:
        jax.distributed.shutdown()
        _joined.watch.end()


def fail(code: int, reason: str) -> None:
    """If this process is one of several, ends it and the others at once, with this code and for this reason.

    An exit in order would wait for the others, which wait for this one.
    """
    if _joined is not None:
        quit(code, reason)


def quit(code: int, reason: str, last_words: str = "") -> NoReturn:
    """Ends this process at once, whatever its threads do, and the others with it; they say this `reason`."""
    surely = threading.Timer(QUIT_SECONDS, os._exit, [code])  # the output may be what another thread is stuck with
    surely.daemon = True
    surely.start()
    if _joined is not None:
        _joined.watch.fail(code, reason)
    with contextlib.suppress(OSError):
        os.write(2, f"{last_words}\n".encode() if last_words else b"")
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
