"""What happens to checkpoints from outside: restarts, damaged records, renamed folders, fast writers, failing disks."""

import asyncio
import errno
import gc
import itertools
import json
import os
import resource
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
import pytest

from gpt_jax.runs import checkpoint, saving
from gpt_jax.runs.checkpoint import CheckpointError, Checkpoints
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.saving import SaveFailed
from gpt_jax.runs.sealed import DamagedRecord, unsealed
from tests.runs.test_checkpoint import REST, TEMPLATES, assert_same_bits, params, saved


def record_file(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / str(step) / "record" / "metadata"


def as_an_earlier_version_saved(folder: Path, step: int) -> None:
    """Versions before the digest wrote the step and the fingerprints alone."""
    content = json.loads(record_file(folder, step).read_text())
    record_file(folder, step).write_text(json.dumps({"step": step, "fingerprints": content["fingerprints"]}))


def go_on(folder: Path, step: int, loss: float | None) -> list[int]:
    """Opens a folder again, saves one more checkpoint, and returns the steps that stay."""
    with Checkpoints(RunFolder(folder)) as checkpoints:
        checkpoints.save(step, params(step), REST, {}, loss)
        checkpoints.wait()
        return checkpoints.steps()


# ── the best one ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_best_stays_when_the_run_goes_on(tmp_path: Path) -> None:
    with saved(tmp_path, [3.0, 1.0, 2.0]):
        pass
    assert go_on(tmp_path, 4, 2.5) == [4, 2]
    assert go_on(tmp_path, 5, None) == [5, 2]
    with Checkpoints(RunFolder(tmp_path), read_only=True) as reader:
        assert_same_bits(reader.restore(2, TEMPLATES).trees["params"], params(2))
    assert go_on(tmp_path, 6, 0.5) == [6], "a better one takes its place, and the newest is never deleted"
    assert go_on(tmp_path, 7, float("inf")) == [7, 6]


def test_the_best_of_an_earlier_version_is_known_from_its_metrics(tmp_path: Path) -> None:
    with saved(tmp_path, [3.0, 1.0, 2.0]):
        pass
    for step in (2, 3):
        as_an_earlier_version_saved(tmp_path, step)
    rows = [{"step": step, "split": "validation", "loss": loss} for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0))]
    rows += [{"step": 3, "split": "train", "loss": 0.1}, {"step": 4, "split": "validation", "loss": 0.1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert go_on(tmp_path, 5, 2.5) == [5, 2]


def test_an_evaluation_after_the_save_counts(tmp_path: Path) -> None:
    with saved(tmp_path, [None]) as checkpoints:
        checkpoints.evaluated(1, 1.0)
        checkpoints.save(2, params(2), REST, {}, 2.0)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 1]


# ── the record and the folder's name ─────────────────────────────────────────────────────────────────────────────────


def renamed(folder: Path) -> None:
    (folder / "checkpoints" / "2").rename(folder / "checkpoints" / "7")


def copied(folder: Path) -> None:
    shutil.copytree(folder / "checkpoints" / "1", folder / "checkpoints" / "7")
    shutil.rmtree(folder / "checkpoints" / "2")


@pytest.mark.parametrize(("fake", "of"), [(renamed, 2), (copied, 1)])
@pytest.mark.parametrize("version", ["now", "earlier"])
def test_a_renamed_or_copied_step_is_damaged(tmp_path: Path, fake: Any, of: int, version: str) -> None:
    with saved(tmp_path, [None, None], keep=2):
        pass
    for step in (1, 2) if version == "earlier" else ():
        as_an_earlier_version_saved(tmp_path, step)
    fake(tmp_path)
    with Checkpoints(RunFolder(tmp_path), keep=2) as checkpoints:
        with pytest.warns(UserWarning, match=f"checkpoints/7 is damaged: its record is that of step {of}.*going back"):
            restored = checkpoints.restore_newest(TEMPLATES, move_damaged=True)
        assert restored is not None and restored.step == 1
        assert checkpoints.steps() == [1] and [p.name[:2] for p in (tmp_path / "damaged").iterdir()] == ["7-"]
        with pytest.raises(CheckpointError, match="no checkpoint of step 7"):
            checkpoints.saved_fingerprints(7)


RECORDS: list[Any] = [
    *({}, [], None, 5, "text", {"step": 2}, {"fingerprints": {}}),
    *({"step": 2, "fingerprints": x} for x in (None, 5, [], {"params": None}, {"params": {"a": 5}})),
    *({"step": x, "fingerprints": {}} for x in (None, "2", 2.0, True, [2])),
    {"step": 2, "fingerprint": {}},
    {"step": 2, "fingerprints": {}, "validation_loss": 0.1},
    {"step": 2, "fingerprints": {}, "digest": "0123456789abcdef"},
]


def test_any_damage_to_a_record_falls_back(tmp_path: Path) -> None:
    with saved(tmp_path, [1.0, 2.0], keep=2):
        pass
    whole = record_file(tmp_path, 2).read_bytes()
    contents = [json.dumps(content).encode() for content in RECORDS] + [
        b"",
        b"\xff",
        whole[:-9],
        whole + b"}",
        b"[" * 9999,
    ]
    for content in contents:
        record_file(tmp_path, 2).write_bytes(content)
        with Checkpoints(RunFolder(tmp_path), read_only=True) as reader:
            with pytest.warns(UserWarning, match="checkpoints/2 .*going back"):
                restored = reader.restore_newest({"params": TEMPLATES["params"]})
            assert restored is not None and restored.step == 1, content
            with pytest.raises(CheckpointError, match="checkpoints/2 is damaged: its record"):
                reader.saved_fingerprints(2)
    record_file(tmp_path, 2).unlink()
    with Checkpoints(RunFolder(tmp_path)) as checkpoints, pytest.warns(UserWarning, match="checkpoints/2"):
        assert checkpoints.restore_newest(TEMPLATES, move_damaged=True).step == 1  # type: ignore[union-attr]


def test_every_flipped_bit_of_a_record_is_found(tmp_path: Path) -> None:
    """Without Orbax, which reads the same JSON: all 8 bits of all bytes."""
    with saved(tmp_path, [1.5]):
        pass
    whole = record_file(tmp_path, 1).read_bytes()
    assert unsealed(json.loads(whole), 1).validation_loss == 1.5
    equal = 0
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        try:
            loaded = json.loads(content)
        except ValueError:
            continue
        if loaded == json.loads(whole):  # a space that became another kind of space
            equal += 1
            continue
        with pytest.raises(DamagedRecord):
            unsealed(loaded, 1)
    assert equal < len(whole)


# ── a reader beside a writer ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_reader_looks_again_where_a_writer_replaces_what_it_reads(tmp_path: Path) -> None:
    with saved(tmp_path, [None]) as writer, Checkpoints(RunFolder(tmp_path), read_only=True) as reader:
        writer.save(2, params(2), REST, {}, None)
        writer.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            restored = reader.restore_newest({"params": TEMPLATES["params"]})
        assert restored is not None and restored.step == 2


def test_readers_beside_a_writer_that_keeps_one(tmp_path: Path) -> None:
    """Of 609 readers like these, 5 met a folder that vanished while it was listed, before they listed again."""
    stop, written = threading.Event(), threading.Event()

    def write() -> None:
        with Checkpoints(RunFolder(tmp_path)) as writer:
            for step in itertools.count(1):
                writer.save(step, params(5), REST, {}, None)
                if step == 2:
                    written.set()
                if stop.is_set():
                    return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        written.wait(60)
        for _ in range(40):
            with Checkpoints(RunFolder(tmp_path), read_only=True) as reader, warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                restored = reader.restore_newest({"params": TEMPLATES["params"]})
            assert restored is not None
            assert_same_bits(restored.trees["params"], params(5))
    finally:
        stop.set()
        thread.join()


def test_a_reader_that_never_catches_up_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.time, "sleep", lambda seconds: None)
    with saved(tmp_path, [None]):
        pass
    with Checkpoints(RunFolder(tmp_path), read_only=True) as reader:
        listed = iter(range(100, 200))
        monkeypatch.setattr(Checkpoints, "steps", lambda self: [next(listed)])
        with pytest.raises(CheckpointError, match="being replaced faster than they can be read"):
            reader.restore_newest({"params": TEMPLATES["params"]})


# ── a save that fails ────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def small_files() -> Iterator[None]:
    """Files of this process cannot grow beyond 6 KiB, so the write of an array fails in the background."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def no_space_for_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    async def save(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", save)


def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(ocp.AsyncCheckpointer, "save", save)


def assert_intact(folder: Path) -> None:
    """The first checkpoint alone is there, and good."""
    with Checkpoints(RunFolder(folder), read_only=True) as reader:
        assert reader.steps() == [1]
        restored = reader.restore_newest(TEMPLATES)
    assert restored is not None
    assert_same_bits(restored.trees, {"params": params(1), "rest": REST})


READ = """
async def read():
    try:
        await anext(waiting())
    except BaseException:
        raise ValueError("Encountered error while reading array index")

async def waiting():
    yield await asyncio.sleep(0)
"""


@pytest.mark.parametrize(("file", "is_shown"), [("site-packages/orbax/serialization.py", False), ("own.py", True)])
def test_further_reads_that_fail_are_not_told_beside_the_sentence(
    monkeypatch: pytest.MonkeyPatch, file: str, is_shown: bool
) -> None:
    """Orbax reads all arrays at once, and drops the reads that are left when one has failed."""
    shown: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", saving._without_echoes(lambda one: shown.append(str(one.exc_value))))
    names: dict[str, Any] = {"asyncio": asyncio}
    exec(compile(READ, file, "exec"), names)
    begun = names["read"]()
    begun.send(None)
    del begun
    gc.collect()
    assert shown == ["Encountered error while reading array index"] * is_shown


def test_threads_take_turns_as_before_after_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, within = sys.getswitchinterval(), []

    def save(*_: Any, **__: Any) -> None:
        within.append(sys.getswitchinterval())
        raise OSError(errno.ENOSPC, "")

    with Checkpoints(RunFolder(tmp_path)) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "save", save)
        with pytest.raises(SaveFailed, match="the disk is full"):
            checkpoints.save(1, params(1), REST, {}, None)
        assert sys.getswitchinterval() == usual and 0 < within[0] < usual


def test_a_failed_save_is_never_done(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """It comes out where the run waits for it, as often as it is asked for, and nothing is saved after it."""
    folders = [tmp_path / name for name in ("asked", "ended", "hidden")]
    for folder in folders:
        with saved(folder, [None]):
            pass
    asked, ended, hidden = (RunFolder(folder) for folder in folders)
    with small_files():
        with Checkpoints(asked) as checkpoints:
            checkpoints.save(2, params(2), REST, {}, None)
            for call in (checkpoints.wait, checkpoints.wait, lambda: checkpoints.save(3, params(3), REST, {}, None)):
                with pytest.raises(
                    SaveFailed, match=r"step 2 could not be written to .*checkpoints/2 \(File too large"
                ):
                    call()
        with pytest.raises(SaveFailed, match="step 2"), Checkpoints(ended) as checkpoints:
            checkpoints.save(2, params(2), REST, {}, None)  # nobody waits but the end
        with (
            pytest.raises(KeyError),
            pytest.warns(UserWarning, match="step 2 could not"),
            Checkpoints(hidden) as checkpoints,
        ):
            checkpoints.save(2, params(2), REST, {}, None)
            raise KeyError("another error, which is not hidden")
    assert capfd.readouterr() == ("", ""), "no traceback"
    for folder in folders:
        assert_intact(folder)


@pytest.mark.parametrize(
    ("fault", "reason"), [(no_space_for_the_record, "the disk is full"), (no_folder, "Read-only file system")]
)
def test_the_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, fault: Any, reason: str
) -> None:
    with saved(tmp_path, [None]):
        pass
    fault(monkeypatch)
    with Checkpoints(RunFolder(tmp_path)) as checkpoints:
        with pytest.raises(SaveFailed, match=rf"step 2 .*\({reason}\)"):
            checkpoints.save(2, params(2), REST, {}, None)
            checkpoints.wait()
    assert capfd.readouterr() == ("", ""), "no traceback"
    assert_intact(tmp_path)
