"""The run folder: whole files, one writer, and object stores."""

import json
import subprocess
import sys
from pathlib import Path

import fsspec
import jax
import pytest
from etils.epath import backend

from gpt_jax.runs import folder as storage
from gpt_jax.runs.folder import RunFolder, RunLocked


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("config.json", {"old": 1})

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage.os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        folder.write_json("config.json", {"new": 2})
    assert folder.read_json("config.json") == {"old": 1}


def test_only_process_0_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    folder = RunFolder(tmp_path / "run")
    with folder.lock():
        folder.make()
        folder.write_text("a", "x")
        folder.append("b", "x")
    assert not (tmp_path / "run").exists()


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    with RunFolder(tmp_path).lock():
        with pytest.raises(RunLocked, match="another run is writing"), RunFolder(tmp_path).lock():
            pass
    with RunFolder(tmp_path).lock():
        pass


def test_a_killed_writer_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys; from gpt_jax.runs.folder import RunFolder\n"
        "lock = RunFolder(sys.argv[1]).lock(); lock.__enter__(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2]).returncode == 9
    with RunFolder(tmp_path).lock():
        pass


def test_damaged_json_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a":')
    with pytest.raises(ValueError, match="config.json is not JSON"):
        RunFolder(tmp_path).read_json("config.json")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    """A `gs://` that lies in memory: no append, no locks, every write replaces an object."""
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
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    return "gs://bucket/run"


def test_an_object_store_can_hold_a_run(bucket: str) -> None:
    folder = RunFolder(bucket)
    with folder.lock():
        folder.write_json("config.json", {"a": 1})
        folder.append("metrics.jsonl", "1\n")
        folder.append("metrics.jsonl", "2\n", force=False)  # waits
        assert RunFolder(bucket).read_text("metrics.jsonl") == "1\n"
        folder.append("metrics.jsonl", "3\n")
    later = RunFolder(bucket)
    assert later.read_json("config.json") == {"a": 1}
    later.append("metrics.jsonl", "4\n")
    assert later.read_text("metrics.jsonl") == "1\n2\n3\n4\n"
    later.truncate("metrics.jsonl", "1\n")
    later.append("metrics.jsonl", "2\n")
    assert later.read_text("metrics.jsonl") == "1\n2\n"


@pytest.mark.filterwarnings("ignore:waits up to")
def test_a_lease_keeps_a_second_writer_out_of_an_object_store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LEASE_SECONDS", 2.0)  # renewed every half second
    with RunFolder(bucket).lock():
        with pytest.raises(RunLocked), RunFolder(bucket).lock():
            pass
    with RunFolder(bucket).lock():  # given back
        pass


def test_the_lease_of_a_run_that_has_just_died_is_waited_for(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LEASE_SECONDS", 1.0)
    folder, renewed = RunFolder(bucket), storage.time.time()
    folder.file("lease.json").write_text(json.dumps({"id": "dead", "renewed": renewed}))
    with pytest.warns(UserWarning, match="waits up to 1 seconds"), folder.lock():
        assert storage.time.time() >= renewed + 1


def test_a_stale_lease_is_taken_over(bucket: str) -> None:
    folder = RunFolder(bucket)
    folder.file("lease.json").write_text(json.dumps({"id": "dead", "renewed": 0.0}))
    with folder.lock():
        assert json.loads(folder.file("lease.json").read_text())["id"] != "dead"
