"""How processes notice one another's end, mostly without starting any."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from gpt_jax.runs.interrupt import Interrupts
from gpt_jax.runs.watch import Watch

ROOT = Path(__file__).parents[2]


class Group:
    """The watches of some processes, and what each said when it ended its process."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ends: dict[str, tuple[int, str]] = {}
        said: dict[str, str] = {}

        def write(_: int, text: bytes) -> None:
            said[text.decode().split(":")[0]] = text.decode()

        monkeypatch.setattr("gpt_jax.runs.watch.os.write", write)
        self.watches = [_Watch(i, count, said, self.ends) for i in range(count)]
        address = self.watches[0].listen(["nowhere.invalid", "localhost"])
        for watch in self.watches[1:]:
            watch.connect(address)
        until(lambda: sum(link.peer is not None for link in self.watches[0]._links) == count - 1)


class _Watch(Watch):
    def __init__(self, index: int, count: int, said: dict[str, str], ends: dict[str, tuple[int, str]]) -> None:
        super().__init__(f"p{index}", index, count, 75)
        self._said, self._ends = said, ends

    def _exit(self, code: int) -> None:
        self._ends[self._name] = (code, self._said.get(self._name, ""))
        self._has_ended = True


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def close(watch: Watch) -> None:
    """As the kernel does when the process dies."""
    for link in list(watch._links):
        with contextlib.suppress(OSError):  # the other end may have closed it
            link.connection.shutdown(socket.SHUT_RDWR)


def test_all_hear_of_one_that_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(3, monkeypatch)
    group.watches[2]._has_ended = True  # it is dead, and says nothing
    close(group.watches[2])
    until(lambda: len(group.ends) == 2)
    for name in ("p0", "p1"):
        code, sentence = group.ends[name]
        assert code == 75 and sentence.startswith(f"{name}: process 2 of 3, on ") and "died" in sentence
        assert sentence.count("\n") == 1


def test_an_abort_leaves_the_watch_time_to_speak() -> None:
    script = """
import ctypes, os, threading
from gpt_jax.runs.processes import delay_abort
delay_abort()
threading.Timer(1.0, os._exit, [75]).start()
ctypes.CDLL(None).abort()  # without the interpreter, as from a thread of JAX
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 75


def test_all_hear_of_the_end_of_process_0(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(3, monkeypatch)
    group.watches[0]._has_ended = True
    close(group.watches[0])
    until(lambda: len(group.ends) == 2)
    assert all(code == 75 and "process 0 of 3, on " in sentence for code, sentence in group.ends.values())


def test_all_hear_the_reason_of_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(3, monkeypatch)
    group.watches[1].fail(2, "the reason")
    until(lambda: len(group.ends) == 2)
    assert all(code == 2 and "process 1 of 3" in text and "the reason" in text for code, text in group.ends.values())


def test_one_that_ends_in_order_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(3, monkeypatch)
    for i in (1, 0):
        group.watches[i].end()
        close(group.watches[i])
    until(lambda: not group.watches[0]._links and not group.watches[2]._links)
    assert group.ends == {}


def test_all_are_told_though_links_are_dropped_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(3, monkeypatch)
    watch = group.watches[0]
    first = watch._links[0]
    send = first.send

    def send_and_wait(message) -> None:
        send(message)
        until(lambda: first not in watch._links)

    monkeypatch.setattr(first, "send", send_and_wait)
    watch.end()
    close(watch)
    until(lambda: not group.watches[1]._links and not group.watches[2]._links)
    assert group.ends == {}


def test_a_stranger_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(2, monkeypatch)
    stranger = _Watch(1, 2, {}, {})
    port = group.watches[0]._listener.getsockname()[1]
    stranger.connect({"hosts": ["localhost"], "port": port, "token": "guessed", "name": "here"})
    stranger.fail(1, "malice")
    until(lambda: len(group.watches[0]._links) == 1)
    assert group.ends == {}


def test_a_watch_that_reaches_nobody_says_so() -> None:
    with pytest.warns(UserWarning, match="process 1 cannot reach process 0 at nowhere.invalid, port 1"):
        Watch("p1", 1, 2, 75).connect({"hosts": ["nowhere.invalid"], "port": 1, "token": "", "name": "here"})


def test_ctrl_c_is_passed_on_to_the_service_that_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[int] = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("gpt_jax.runs.interrupt.signal.raise_signal", raised.append)
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: raised == [signal.SIGTERM])
        assert signal.getsignal(signal.SIGTERM) is before  # it belongs to JAX's service
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
