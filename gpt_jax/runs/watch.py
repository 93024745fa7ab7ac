"""Ends this process within seconds, with a sentence that says why, when another process of the run has ended.

Every process has a connection to process 0. While all is well nothing is sent over it: the kernel closes those of a
process that dies, and keep-alive probes find a host that is gone, so a host that is only slow is never given up.
JAX's own service would end this process too, but with a C++ stack trace, and only after 100 seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

IDLE, INTERVAL, PROBES = 10, 5, 4  # seconds and number of the kernel's probes: a host that is gone is found after 30 s
CONNECT_SECONDS = 5.0
EXPLAIN_SECONDS = 5.0  # between an error that the end of another process causes, and the notice of that end


@dataclass(frozen=True)
class Loss:
    """The end of a process before the others: its exit code and the reason if it failed by itself, None if it died."""

    process: int
    host: str
    code: int | None = None
    reason: str | None = None

    def sentence(self, count: int) -> str:
        who = f"process {self.process} of {count}, on {self.host},"
        if self.code is not None:
            return f"{who} failed, so this one stops too: {self.reason}"
        return (
            f"{who} died, so this one stops too: look for the reason in its output, then start all processes again, and"
            " a run goes on from its newest checkpoint"
        )


class _Link:
    """One end of a connection. Messages are JSON objects, one per line."""

    def __init__(self, connection: socket.socket, peer: tuple[int, str] | None) -> None:
        self.connection = connection
        self.peer = peer  # (process, host); None before it has said who it is
        self._received = b""
        connection.settimeout(CONNECT_SECONDS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        idle = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"  # the latter on macOS
        for option, value in ((idle, IDLE), ("TCP_KEEPINTVL", INTERVAL), ("TCP_KEEPCNT", PROBES)):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it has ended; reading from it says so
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that have come; None if the other end has closed."""
        try:
            data = self.connection.recv(65536)
        except OSError:
            return None
        if not data:
            return None
        *lines, self._received = (self._received + data).split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError:  # no process of ours
            return None


class Watch:
    """Watches the other processes of `count` from a thread. `exit_code` is for the end of one that died."""

    def __init__(self, name: str, index: int, count: int, exit_code: int) -> None:
        self._name, self._index, self._count, self._exit_code = name, index, count, exit_code
        self._host = socket.gethostname()
        self._token = secrets.token_hex(8)
        self._selector = selectors.DefaultSelector()
        self._links: list[_Link] = []
        self._listener: socket.socket | None = None
        self._has_ended = False

    def listen(self, hosts: Sequence[str]) -> dict[str, Any]:
        """Process 0: begins to listen. Returns the address that the others `connect` to, by one of `hosts`."""
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._listener = socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=1024)
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._start()
        port = self._listener.getsockname()[1]
        return {"hosts": list(hosts), "port": port, "token": self._token, "name": self._host}

    def connect(self, address: dict[str, Any]) -> None:
        """The other processes: connects to process 0. A UserWarning says so if that is impossible."""
        for host in address["hosts"]:
            with contextlib.suppress(OSError):
                connection = socket.create_connection((host, address["port"]), CONNECT_SECONDS)
                link = _Link(connection, (0, address["name"]))
                link.send({"token": address["token"], "process": self._index, "host": self._host})
                self._add(link)
                self._start()
                return
        warnings.warn(
            f"process {self._index} cannot reach process 0 at {' or '.join(address['hosts'])}, port {address['port']}:"
            " if a process dies, this one notices only after 100 seconds; allow connections between the hosts",
            stacklevel=2,
        )

    def end(self) -> None:
        """Tells the others that this process has done its work."""
        self._has_ended = True
        self._tell({"end": True})

    def fail(self, code: int, reason: str) -> None:
        """Tells the others that this process ends with an error."""
        self._has_ended = True
        self._report(Loss(self._index, self._host, code, reason))

    def explain(self) -> None:
        """After an error that the end of another process may have caused: waits for the notice of it, which ends this
        process.
        """
        if self._links:
            time.sleep(EXPLAIN_SECONDS)

    def _start(self) -> None:
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            self._add(_Link(self._listener.accept()[0], None))

    def _add(self, link: _Link) -> None:
        self._links.append(link)
        self._selector.register(link.connection, selectors.EVENT_READ, link)

    def _drop(self, link: _Link) -> None:
        self._links.remove(link)
        self._selector.unregister(link.connection)
        link.connection.close()

    def _read(self, link: _Link) -> None:
        messages = link.receive()
        for message in messages or ():
            if link.peer is None:
                if message.get("token") != self._token:
                    self._drop(link)
                    return
                link.peer = (message["process"], message["host"])
            elif "lost" in message:
                self._stop(Loss(**message["lost"]))
            elif "end" in message:
                self._drop(link)
                return
        if messages is None:
            self._drop(link)
            if link.peer is not None:
                self._stop(Loss(*link.peer))

    def _report(self, loss: Loss) -> None:
        self._tell({"lost": vars(loss)})

    def _tell(self, message: dict[str, Any]) -> None:
        for link in tuple(self._links):  # the thread drops links meanwhile, and an iterator over them would skip some
            if link.peer is not None:
                link.send(message)

    def _stop(self, loss: Loss) -> None:
        if self._has_ended:
            return
        self._report(loss)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os.write(2, f"{self._name}: {loss.sentence(self._count)}\n".encode())
        self._exit(self._exit_code if loss.code is None else loss.code)

    def _exit(self, code: int) -> None:
        os._exit(code)
