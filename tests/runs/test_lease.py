"""The lease on a folder in an object store: one writer at a time, whatever fails, sleeps or jumps."""

import json
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

import pytest

from gpt_jax.runs import lease
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.lease import LEASE_SECONDS, Lease, LeaseLost, RunLocked
from tests.bucket import memory_bucket

ANOTHER = json.dumps({"id": "another", "renewals": 1})


class Store:
    """The object of a lease, and a clock that `sleep` moves on; `on_sleep` is what others do meanwhile."""

    parent = PurePosixPath("/bucket/run")

    def __init__(self) -> None:
        self.content: bytes | None = None
        self.seconds = 0.0
        self.is_down = False
        self.written: list[str] = []
        self.on_sleep: Callable[[], None] = lambda: None

    def read_bytes(self) -> bytes:
        if self.is_down:
            raise ConnectionError("no route")
        if self.content is None:
            raise FileNotFoundError
        return self.content

    def write_text(self, text: str, /) -> int:
        if self.is_down:
            raise ConnectionError("no route")
        self.written.append(text)
        self.content = text.encode()
        return len(text)

    def unlink(self) -> None:
        self.content = None

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.on_sleep()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr(lease, "now", lambda: store.seconds)
    monkeypatch.setattr(lease, "time", types.SimpleNamespace(sleep=store.sleep))
    monkeypatch.setattr(Lease, "_keep", lambda self: None)  # the tests renew by themselves
    return store


@contextmanager
def held(store: Store) -> Iterator[Lease]:
    with Lease(store) as holder:
        yield holder


def test_a_free_folder_is_held_and_given_back(store: Store) -> None:
    with held(store) as holder:
        assert store.seconds < 1
        for _ in range(20):
            store.seconds += LEASE_SECONDS / 4
            assert holder.renew()
            holder.check()
        assert len(set(store.written)) == 21, "each renewal is another text"
    assert store.content is None


def test_who_renews_is_alive_whatever_its_clock_says(store: Store) -> None:
    """Its host may live in another year: only whether the lease changes counts."""
    for renewed in (0.0, 1e12, -5, "1970", None):
        beats = iter(range(1000))

        def beat(renewed: object = renewed, beats: Iterator[int] = beats) -> None:
            store.content = json.dumps({"id": "x", "renewed": renewed, "renewals": next(beats) // 15}).encode()

        store.on_sleep = beat
        beat()
        with pytest.warns(UserWarning, match="waits up to 120 seconds"), pytest.raises(RunLocked), held(store):
            pass


DEAD = [ANOTHER, json.dumps({"id": "x", "renewed": 9e12}), "{}", "[]", "", '{"id": "x', "3", "null", "[" * 9999]


@pytest.mark.filterwarnings("ignore:waits up to")
def test_what_does_not_change_is_taken_over_whatever_it_holds(store: Store) -> None:
    for content in [*[text.encode() for text in DEAD], b"\0" * 40, b"\xff\xfe"]:
        begun, store.content = store.seconds, content
        with held(store) as holder:
            assert store.seconds - begun >= LEASE_SECONDS
            holder.check()
        assert store.content is None


@pytest.mark.filterwarnings("ignore:waits up to")
def test_a_lease_that_is_given_back_is_free_at_once(store: Store) -> None:
    store.content, store.on_sleep = ANOTHER.encode(), store.unlink
    store.on_sleep = lambda: store.unlink() if not store.written else None
    with held(store):
        assert store.seconds < 5


def test_of_two_that_start_at_once_one_goes_on(store: Store) -> None:
    def overwrite() -> None:
        store.content = ANOTHER.encode()

    store.on_sleep = overwrite
    with pytest.raises(RunLocked), held(store):
        pass
    assert store.content == ANOTHER.encode(), "the other's lease stays"


def test_a_failed_renewal_is_tried_again(store: Store) -> None:
    with held(store) as holder:
        store.seconds, store.is_down = store.seconds + LEASE_SECONDS / 4, True
        assert not holder.renew()
        store.on_sleep = lambda: setattr(store, "is_down", store.seconds < LEASE_SECONDS / 2)
        holder.check()  # waits until the store answers again
        assert LEASE_SECONDS / 2 <= store.seconds < LEASE_SECONDS * 0.6
        assert holder.renew()
        store.seconds += LEASE_SECONDS / 2
        holder.check()


def test_a_store_that_stays_away_ends_the_run_before_another_may_begin(store: Store) -> None:
    with held(store) as holder:
        store.is_down = True
        with pytest.raises(LeaseLost, match="could not be renewed for 90 seconds"):
            holder.check()
        assert store.seconds < LEASE_SECONDS, "another waits for longer"
        store.is_down = False
        assert holder.renew() and len(store.written) == 1, "it is not renewed any more"
        with pytest.raises(LeaseLost):
            holder.check(asks=False)
    assert store.content is not None, "what is lost is not touched"


def test_a_run_that_slept_has_lost_its_lease(store: Store) -> None:
    """Also while nobody else has come: from its own clock alone, without a word from the store."""
    with held(store) as holder:
        store.seconds += 3600
        with pytest.raises(LeaseLost):
            holder.check(asks=False)
        holder.renew()
        assert len(store.written) == 1


@pytest.mark.parametrize("content", [ANOTHER, "{}", "[]", "", None])
def test_a_run_that_finds_anothers_lease_stops_and_leaves_it(store: Store, content: str | None) -> None:
    with held(store) as holder:
        store.content = None if content is None else content.encode()
        with pytest.raises(LeaseLost, match="taken over /bucket/run"):
            holder.check()
        holder.renew()
    assert len(store.written) == 1 and store.content == (None if content is None else content.encode())


def test_the_clock_counts_what_the_system_slept() -> None:
    first = lease.now()
    assert 0 <= lease.now() - first < 5


# ── in a folder ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.8)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.01)
    return memory_bucket(monkeypatch)


@pytest.mark.filterwarnings("ignore:waits up to")
def test_a_second_writer_is_kept_out_by_renewals(bucket: str) -> None:
    with RunFolder(bucket).lock():
        with pytest.raises(RunLocked, match="another run is writing"), RunFolder(bucket).lock():
            pass
    with RunFolder(bucket).lock():  # given back
        pass


def test_nothing_is_written_once_the_lease_is_lost(bucket: str) -> None:
    folder, other = RunFolder(bucket), RunFolder(bucket)
    with pytest.raises(LeaseLost), folder.lock():
        folder.append("metrics.jsonl", "1\n")
        other.write_text("lease.json", ANOTHER)
        for write in (
            lambda: folder.append("metrics.jsonl", "2\n"),
            lambda: folder.append("metrics.jsonl", "3\n", force=False),
            lambda: folder.write_json("config.json", {}),
            lambda: folder.truncate("metrics.jsonl", ""),
        ):
            with pytest.raises(LeaseLost, match="another run has taken over"):
                write()
        folder.write_text("a", "b")
    assert other.read_text("metrics.jsonl") == "1\n"
    assert not other.exists("config.json") and other.read_text("lease.json") == ANOTHER
