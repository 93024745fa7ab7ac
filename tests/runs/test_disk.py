"""Full and read-only disks, and folders that vanish: a sentence that names the path, and nothing half-written."""

import errno
import io
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from experiments import cli
from gpt_jax.config.disk import disk_fault, writing
from gpt_jax.data.cache import build_once
from gpt_jax.data.tokenizer import ByteTokenizer
from gpt_jax.data.tokenizer.base import MANIFEST
from gpt_jax.interop.weights import write_weights
from gpt_jax.runs.folder import FolderGone, RunFolder
from gpt_jax.runs.metrics import Metrics, TensorBoard
from tests.experiments.test_train_cli import lines
from tests.places import run

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, which Linux has")


def onto_full(path: Path) -> Path:
    """A file whose disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(FULL)
    return path


def partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def save_array(path: Path) -> None:
    with writing(path):
        np.save(path, np.zeros(9))


def build(folder: Path) -> dict:
    onto_full(folder / "text.tokens").write_bytes(b"1")
    return {}


def record(folder: Path) -> None:
    records = Metrics(RunFolder(folder), 0, [])
    if folder.name == "full":
        onto_full(folder / "metrics.jsonl")  # not before: reading it never ends
    records.write({"step": 1, "split": "train", "loss": 1.0})
    records.flush()


def events(folder: Path) -> None:
    board = TensorBoard(RunFolder(folder), 0)
    board._file._py_recordio_writer._writer = io.BufferedWriter(io.FileIO("/dev/full", "wb"))
    board.write({"step": 1, "split": "train", "loss": 1.0})
    board.close()


WRITES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "metrics": ("", lambda folder: record(folder / "full")),
    "a record": (".config.json.partial", lambda folder: RunFolder(folder).write_json("config.json", {})),
    "a picture": (".loss.png.partial", lambda folder: RunFolder(folder).write_bytes("loss.png", b"1")),
    "TensorBoard": ("", events),
    "a tokenizer": ("tokenizer/tokenizer.json", lambda folder: ByteTokenizer().save(folder / "tokenizer")),
    "weights": ("model.safetensors", lambda folder: write_weights(folder / "model.safetensors", {})),
    "a token cache": ("", lambda folder: build_once(folder / "cache", build)),
    "an array": ("array.npy", lambda folder: save_array(folder / "array.npy")),
}


@needs_full
@pytest.mark.parametrize("what", WRITES)
def test_a_full_disk_is_a_sentence_with_the_path(what: str, tmp_path: Path) -> None:
    name, write = WRITES[what]
    if name.startswith("."):
        onto_full(partial(tmp_path / name[1:].removesuffix(".partial")))
    elif what == "a tokenizer":
        onto_full(tmp_path / "tokenizer" / MANIFEST)
    elif name:
        onto_full(tmp_path / name)
    with pytest.raises(OSError) as caught:
        write(tmp_path)
    told = cli.explanation(caught.value)
    assert told is not None and str(tmp_path) in told and "No space left on device" in told and "free space" in told
    left = [path for path in tmp_path.rglob("*") if "partial" in path.name]
    assert left == [], "what was half-written is removed"


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has room for half of the second line."""
    folder, room = RunFolder(tmp_path), [10]
    given = io.FileIO.write

    class Small(io.FileIO):
        def write(self, data: bytes, /) -> int:
            if not room[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            count = min(room[0], len(data))
            room[0] -= count
            return given(self, data[:count])

    monkeypatch.setattr(io, "FileIO", Small)
    folder.append("metrics.jsonl", "1234567\n")
    with pytest.raises(OSError, match="No space") as caught:
        folder.append("metrics.jsonl", "1234567\n")
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"1234567\n"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_other_faults_are_answered_too(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("gpt_jax.runs.folder.os.fsync", fail)
    with pytest.raises(OSError) as caught:
        RunFolder(tmp_path).write_json("config.json", {})
    told = cli.explanation(caught.value)
    assert told is not None and str(tmp_path / "config.json") in told and os.strerror(number) in told


def test_a_library_that_wraps_the_fault_is_understood() -> None:
    try:
        try:
            raise RuntimeError("DATA_LOSS: Failed to write /run/checkpoints/3: [OS error 28: No space left on device]")
        except RuntimeError as cause:
            raise ValueError("the save failed") from cause
    except ValueError as error:
        told = disk_fault(error)
    assert told is not None and told.startswith("/run/checkpoints/3 cannot be written (No space left on device): free")
    assert disk_fault(ValueError("a bug")) is None


def test_a_deleted_folder_is_a_sentence(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "gone")
    for write in (lambda: folder.append("a", "b"), lambda: folder.write_json("a", {})):
        with pytest.raises(FolderGone, match="gone was deleted or moved while this process wrote to it"):
            write()
    folder.make()
    folder.append("metrics.jsonl", "1\n")
    shutil.rmtree(tmp_path / "gone")
    folder.make("checkpoints")  # as Orbax does
    with pytest.raises(FolderGone):
        folder.append("metrics.jsonl", "2\n")
    assert not folder.exists("metrics.jsonl"), "half a file would pass for a whole one"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Path]]:
    """Mounts disks of a few megabytes."""
    mounted: list[Path] = []

    def mount(number: int) -> Path:
        path = tmp_path_factory.mktemp(f"disk{number}")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], capture_output=True)
        if done.returncode:
            pytest.skip("needs the permission to mount a disk")
        mounted.append(path)
        return path / "run"

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_or_closes_while_it_trains_ends_it_with_a_sentence(
    disk: Callable[[int], Path], tmp_path: Path
) -> None:
    """Whatever it writes next; what was saved before is good, and the same command finishes once there is room."""
    places = ["banner", "batch", "save", "plot"]
    cases = [(at, "fill(WORKDIR + '/..')") for at in places]
    cases += [("batch", "shutil.rmtree(WORKDIR)"), ("save", "shutil.rmtree(WORKDIR)")]
    workdirs = [disk(i) for i in range(len(cases))]
    ended = run(tmp_path, tmp_path, cases, workdirs)
    for case, one in zip(cases, ended, strict=True):
        assert one.code == 1 and "Traceback" not in one.err + one.out, (case, one)
        assert len(one.err.strip().splitlines()) == 1 and str(one.folder) in one.err, (case, one)
        faults = ["No space left on device"] if "fill" in case[1] else ["was deleted or moved", "No such file"]
        assert any(fault in one.err for fault in faults), (case, one)
        if one.folder.exists() and (one.folder / "metrics.jsonl").exists():
            text = (one.folder / "metrics.jsonl").read_text()
            assert text == "" or text.endswith("\n"), "no line is cut"
    for workdir in workdirs:
        (workdir.parent / "filler").unlink(missing_ok=True)
    again = run(tmp_path, tmp_path, [("parse", "0")] * 3, workdirs[:3])
    assert [one.code for one in again] == [0] * 3, again
    losses = [[(r["step"], r["split"], r["loss"]) for r in lines(workdir)] for workdir in workdirs[:3]]
    assert len(losses[0]) == 14 and all(found == losses[0] for found in losses)
