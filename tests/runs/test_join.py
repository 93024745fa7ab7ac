"""How the processes of a command find one another."""

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from gpt_jax.config.errors import ConfigError
from gpt_jax.runs import processes

ROOT = Path(__file__).parents[2]
SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}  # fmt: skip


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without anything that starts several processes."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JOB_", "GCE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # as JAX sets it on a machine without TPUs
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SLURM, ("SLURM", 2)),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, None),  # a shell in an allocation, not started by srun
        ({"OMPI_COMM_WORLD_SIZE": "4"}, ("Open MPI", 4)),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, ("GKE", 4)),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "MEGASCALE_NUM_SLICES": "2"}, ("GKE", 4)),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, ("a Kubernetes job", None)),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_what_starts_several_processes_is_known_by_the_environment(
    alone: pytest.MonkeyPatch, environment: dict[str, str], expected: object
) -> None:
    for name, value in environment.items():
        alone.setenv(name, value)
    assert processes.surroundings() == expected


@pytest.fixture
def metadata(alone: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The attributes that a metadata server answers with, on a machine with TPUs."""
    attributes: dict[str, str] = {}

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            found = name in attributes and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(attributes[name].encode() if found else b"")

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("localhost", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        alone.delenv("TPU_SKIP_MDS_QUERY")
        alone.setenv("GCE_METADATA_IP", f"localhost:{server.server_address[1]}")
        yield attributes
        server.shutdown()


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, None),
        ({"worker-network-endpoints": "unknown:unknown:10.0.0.1"}, None),
        ({"worker-network-endpoints": "u:u:10.0.0.1,u:u:10.0.0.2"}, ("a TPU slice", 2)),
        (
            {"worker-network-endpoints": "10.0.0.1", "tpu-env": "ZONE: 'a'\nMEGASCALE_NUM_SLICES: '2'\n"},
            ("a TPU slice", 2),
        ),
    ],
)
def test_a_tpu_machine_is_asked_for_the_hosts_of_its_slice(
    metadata: dict[str, str], attributes: dict[str, str], expected: object
) -> None:
    metadata.update(attributes)
    assert processes.surroundings() == expected


JOINS = """
import sys
from gpt_jax.config.errors import UserError
from gpt_jax.runs import processes
try:
    processes.join("train", seconds=60)
except UserError as error:
    sys.exit(str(error))
import jax
print(jax.process_index(), jax.process_count(), file=sys.stderr)
processes.end()
"""


def joined(environments: list[dict[str, str]]) -> list[str]:
    """What processes of these environments say after they have joined."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        known = os.environ | {"PYTHONPATH": str(ROOT), "JAX_COORDINATOR_PORT": str(free.getsockname()[1])}
    started = [
        subprocess.Popen([sys.executable, "-c", JOINS], env=known | one, stderr=subprocess.PIPE, text=True)
        for one in environments
    ]
    return [process.communicate(timeout=100)[1].splitlines()[-1] for process in started]


@pytest.mark.slow
def test_processes_that_slurm_or_open_mpi_starts_find_one_another() -> None:
    node = {"SLURM_STEP_NODELIST": "localhost"}
    assert joined([SLURM | node | {"SLURM_PROCID": i, "SLURM_LOCALID": i} for i in "01"]) == ["0 2", "1 2"]
    mpi = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911"}
    ranks = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    assert joined([mpi | dict.fromkeys(ranks, i) for i in "01"]) == ["0 2", "1 2"]


def test_where_jax_finds_no_others_the_sentence_names_the_flags() -> None:
    (said,) = joined([{"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}])
    assert said.startswith("this is one of the 2 processes of GKE, but they cannot meet (")
    assert "--coordinator=HOST:PORT" in said


def test_one_process_opens_no_socket_and_starts_no_service() -> None:
    script = """
import socket, sys, time
from gpt_jax.runs import processes
def refuse(*_, **__): raise AssertionError("a socket")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
before, start = set(sys.modules), time.perf_counter()
processes.join("train"); processes.end()
seconds = time.perf_counter() - start
import jax
assert set(sys.modules) - before == set(), set(sys.modules) - before
assert not jax.distributed.is_initialized() and not processes.are_several()
assert seconds < 0.01, seconds
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_"))}
    environment["PYTHONPATH"] = str(ROOT)
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("localhost:1", 2, None), "give all three, or none"),
        ((None, 2, 0), "give all three, or none"),
        (("localhost", 2, 0), "must be HOST:PORT"),
        (("localhost:1", 2, 2), "numbered from 0 to 1"),
        (("localhost:1", 2, -1), "numbered from 0 to 1"),
    ],
)
def test_wrong_flags_are_refused(flags: tuple, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        processes.join("train", *flags)
    assert not jax.distributed.is_initialized()


def test_one_process_of_one_needs_no_coordinator() -> None:
    processes.join("train", "localhost:1", 1, 0)
    assert not processes.are_several()


def test_the_help_of_a_command_says_how_to_start_it_on_several_hosts() -> None:
    shown = {}
    for name in ("evaluate", "judge"):
        command = [sys.executable, "-m", f"experiments.{name}", "--help"]
        shown[name] = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--coordinator=HOST:PORT --num_processes=N --process_id=I" in shown["evaluate"]
    assert "(default: 300)" in shown["evaluate"] and "--coordinator" not in shown["judge"]


def test_wrong_flags_end_a_command_with_2() -> None:
    command = [sys.executable, "-m", "experiments.evaluate", "--workdir=none", "--num_processes=2"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == (
        "evaluate: --coordinator, --num_processes and --process_id go together: give all three, or none\n"
    )
