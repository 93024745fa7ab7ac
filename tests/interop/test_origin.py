"""The hashes of a model's files are those of the Hugging Face Hub, where it says them."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_jax.config.errors import UserError
from gpt_jax.interop.origin import hashes
from gpt_jax.interop.weights import WEIGHTS

LLAMA = Path(__file__).parent / "fixtures" / "llama"
FILES = ("config.json", WEIGHTS)


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def cache(folder: Path) -> Path:
    """The files as links into the Hub's cache."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "0"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in FILES:
        content = (LLAMA / name).read_bytes()
        blob = hashlib.sha256(content).hexdigest() if name == WEIGHTS else git_blob(content)
        (blobs / blob).write_bytes(content)
        (snapshot / name).symlink_to(blobs / blob)
    return snapshot


def local(folder: Path) -> Path:
    """The files as `hf download --local-dir` leaves them."""
    metadata = folder / ".cache" / "huggingface" / "download"
    metadata.mkdir(parents=True)
    for name in FILES:
        content = (LLAMA / name).read_bytes()
        (folder / name).write_bytes(content)
        etag = hashlib.sha256(content).hexdigest() if name == WEIGHTS else git_blob(content)
        seconds = (folder / name).stat().st_mtime
        (metadata / f"{name}.metadata").write_text(f"{'0' * 40}\n{etag}\n{seconds}\n")
    return folder


@pytest.mark.parametrize("make", [cache, local])
@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_of_the_hub_is_noticed(tmp_path: Path, make: Callable[[Path], Path], name: str) -> None:
    folder = make(tmp_path / "model")
    assert hashes(folder) == {file: hashlib.sha256((LLAMA / file).read_bytes()).hexdigest() for file in FILES}
    before, content = (folder / name).stat(), bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    os.utime(folder / name, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a damaged disk leaves it
    with pytest.raises(UserError, match=f"{name} is not the file that was downloaded"):
        hashes(folder)


def test_a_file_that_is_not_of_the_hub_has_its_own_hash(tmp_path: Path) -> None:
    folder = shutil.copytree(LLAMA, tmp_path / "model")
    assert hashes(folder)[WEIGHTS] == hashes(folder / WEIGHTS)[WEIGHTS] != hashes(folder)["config.json"]
