"""The program on each machine of a slice, against a metadata server and a bucket of this process."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from experiments.launch.tpu import WORKER

RECORDS = "gs://bucket/dir/launch/run/attempt-1"
SAVES = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\nprint('up')\ntime.sleep(60)"


class Machine:
    """Google's services for a slice of `hosts`, and the workers on it."""

    def __init__(self, folder: Path, hosts: int = 1) -> None:
        self.folder, self.hosts = folder, hosts
        self.objects: dict[str, bytes] = {}
        self.deleted: list[str] = []
        self.failures: list[int] = []  # statuses that the bucket answers with first
        self.job: dict[str, Any] = {
            "records": RECORDS,
            "bundle": "gs://bucket/b.tar.gz",
            "install": [],
            "seconds": None,
        }
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.url = f"127.0.0.1:{self.server.server_port}"
        self.job["delete"] = f"http://{self.url}/slice?force=true"
        archive = BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as bundle:
            info = tarfile.TarInfo("code.txt")
            info.size = 4
            bundle.addfile(info, BytesIO(b"code"))
        self.objects["bucket/b.tar.gz"] = archive.getvalue()
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def boot(self, worker: int, *command: str) -> subprocess.Popen[bytes]:
        self.job["command"] = list(command)
        variables = {
            "GCE_METADATA_HOST": f"{self.url}/{worker}",
            "STORAGE_EMULATOR_HOST": f"http://{self.url}",
            "GPT_JAX_LAUNCH": str(self.folder / f"host-{worker}"),
            "GPT_JAX_LAUNCH_SECONDS": "0.1,2,5,0.05",
        }
        return subprocess.Popen([sys.executable, "-I", str(WORKER)], env=os.environ | variables)

    def run(self, *command: str) -> dict[str, Any]:
        """The record of a worker that runs `command` to its end."""
        assert self.boot(0, *command).wait(30) == 0
        return self.record(0)

    def record(self, worker: int) -> dict[str, Any]:
        return json.loads(self.objects[f"{RECORDS[5:]}/worker-{worker}.json"])

    def log(self, worker: int = 0) -> str:
        name = f"{RECORDS[5:]}/worker-{worker}.log"
        return self.objects[name].decode() if name in self.objects else ""


def handler(machine: Machine) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self, content: bytes | None, status: int = 200) -> None:
            self.send_response(404 if content is None else status)
            self.end_headers()
            self.wfile.write(content or b"")

        def do_GET(self) -> None:
            if self.path.startswith("/storage"):
                assert self.headers["Authorization"] == "Bearer secret"
                bucket, name = urlsplit(self.path).path.split("/b/")[1].split("/o/")
                return self.answer(machine.objects.get(f"{bucket}/{unquote(name)}"))
            assert self.headers["Metadata-Flavor"] == "Google"
            worker, key = self.path.split("/")[1], self.path.rsplit("/", 1)[1]
            endpoints = ",".join(f"10.0.0.{i}" for i in range(machine.hosts))
            values = {
                "agent-worker-number": worker,
                "worker-network-endpoints": endpoints,
                "token": '{"access_token": "secret"}',
            }
            values["gpt-jax-job"] = json.dumps(machine.job)
            self.answer(values[key].encode() if key in values else None)

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if machine.failures:
                return self.answer(b"", machine.failures.pop())
            bucket = self.path.split("/b/")[1].split("/")[0]
            machine.objects[f"{bucket}/{parse_qs(urlsplit(self.path).query)['name'][0]}"] = content
            self.answer(b"{}")

        def do_DELETE(self) -> None:
            machine.deleted.append(self.path)
            self.answer(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    one = Machine(tmp_path)
    yield one
    one.server.shutdown()


def test_arguments_reach_the_command_as_they_are_in_the_checkout(machine: Machine) -> None:
    odd = ["it's", 'a "b"', "$HOME `x`", "a\nb", "é,=;", "%(folder)s", ""]
    code = "import json, sys; print(open('code.txt').read(), json.dumps(sys.argv[1:]))"
    record = machine.run(sys.executable, "-c", code, *odd)
    assert record["code"] == 0 and record["hosts"] == 1 and abs(record["ended"] - time.time()) < 60
    assert f"code {json.dumps(odd)}\n" in machine.log()
    assert machine.deleted == ["/slice?force=true"]


@pytest.mark.parametrize("code", [1, 2, 75])
def test_exit_codes_are_recorded(machine: Machine, code: int) -> None:
    assert machine.run(sys.executable, "-c", f"raise SystemExit({code})")["code"] == code


def test_a_signal_is_recorded_as_a_shell_does(machine: Machine) -> None:
    assert machine.run(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")["code"] == 137


def test_installation_runs_first_and_again_where_it_fails(machine: Machine) -> None:
    grow = "from pathlib import Path; p = Path('n'); p.touch(); p.write_text(p.read_text() + 'x')"
    machine.job["install"] = [[sys.executable, "-c", f"{grow}; raise SystemExit(len(p.read_text()) < 3)"]]
    machine.job["install"] += [[sys.executable, "-c", "print(r'folder: %(folder)s')"]]
    record = machine.run(sys.executable, "-c", "print(open('n').read())")
    assert record["code"] == 0 and "xxx" in machine.log()
    assert f"folder: {machine.folder}" in machine.log()


def test_an_installation_that_fails_is_told_with_its_command(machine: Machine) -> None:
    machine.job["install"] = [[sys.executable, "-c", "print('no such package'); raise SystemExit(3)"]]
    assert machine.run("never")["code"] == 1
    assert "no such package" in machine.log() and "the installation failed with the exit code 3" in machine.log()


def test_a_command_that_is_missing_is_an_error(machine: Machine) -> None:
    assert machine.run("no-such-program")["code"] == 1
    assert "no-such-program" in machine.log()


def test_sigterm_of_a_preemption_lets_the_command_save(machine: Machine) -> None:
    process = machine.boot(0, sys.executable, "-uc", SAVES)
    wait_for(lambda: "up" in machine.log())
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert machine.record(0)["code"] == 75


def test_the_limit_asks_the_command_to_save(machine: Machine) -> None:
    machine.job["seconds"] = 1
    assert machine.run(sys.executable, "-uc", SAVES)["code"] == 75
    assert "1 seconds are over: SIGTERM" in machine.log()


def test_a_command_that_does_not_stop_is_killed(machine: Machine) -> None:
    machine.job["seconds"] = 0.5
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    assert machine.run(sys.executable, "-c", stubborn)["code"] == 137


def test_a_bucket_that_fails_for_a_moment_is_asked_again(machine: Machine) -> None:
    machine.failures = [503, 429, 500]
    assert machine.run(sys.executable, "-c", "pass")["code"] == 0


def test_a_machine_that_starts_again_does_not_run_the_command_twice(machine: Machine) -> None:
    machine.run(sys.executable, "-c", "print('once')")
    machine.run(sys.executable, "-c", "print('twice')")
    assert "twice" not in machine.log() and len(machine.deleted) == 1


def test_worker_0_deletes_the_slice_when_all_have_ended(tmp_path: Path) -> None:
    machine = Machine(tmp_path, hosts=2)
    first = machine.boot(0, sys.executable, "-c", "raise SystemExit(1)")
    wait_for(lambda: f"{RECORDS[5:]}/worker-0.json" in machine.objects and machine.record(0)["code"] == 1)
    assert machine.record(0)["hosts"] == 2 and not machine.deleted
    second = machine.boot(1, sys.executable, "-c", "raise SystemExit(1)")
    assert (first.wait(20), second.wait(20)) == (0, 0)
    assert len(machine.deleted) == 1 and machine.record(1)["ended"] > machine.record(0)["ended"]
    machine.server.shutdown()


def test_its_beat_changes_while_the_command_runs(machine: Machine) -> None:
    process = machine.boot(0, sys.executable, "-c", "import time; time.sleep(60)")
    name = f"{RECORDS[5:]}/worker-0.json"
    wait_for(lambda: name in machine.objects)
    beat = machine.record(0)["beat"]
    wait_for(lambda: machine.record(0)["beat"] > beat)
    process.terminate()
    assert process.wait(20) == 0


def test_it_needs_no_package_and_an_old_python_reads_it() -> None:
    tree = ast.parse(WORKER.read_text(), feature_version=(3, 8))
    names = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    names |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names


def wait_for(condition: Any) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit, "it did not come"
        time.sleep(0.02)
