"""The run folder: whole files, one writer, and object stores."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from gpt_jax.runs import folder as storage
from gpt_jax.runs import lease
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.lease import RunLocked
from tests.bucket import memory_bucket


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
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    return memory_bucket(monkeypatch)


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
