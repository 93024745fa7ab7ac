"""Files that others wrote: what is not a readable file gets one sentence, and nothing is waited for."""

import os
from pathlib import Path

import pytest

from gpt_jax.config import foreign
from gpt_jax.config.errors import MissingFile, UserError


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (tmp_path, pipe, link, Path("/dev/zero")):
        with pytest.raises(UserError, match="is not a file but"):
            foreign.read_bytes(path)
    for path in (tmp_path / "missing", tmp_path / "a" / "b"):
        with pytest.raises(MissingFile, match="there is no file"):
            foreign.read_bytes(path)
    with pytest.raises(UserError, match="cannot be read"):
        foreign.read_bytes(tmp_path / ("x" * 300))


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1234")
    assert foreign.read_bytes(file, 4) == b"1234"
    with pytest.raises(UserError, match="more than 3 bytes"):
        foreign.read_bytes(file, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff", "not UTF-8"),
        (b"{", "not JSON"),
        (b"[" * 200_000, "too deep"),
        (b'{"a":' * 200_000, "too deep"),
        (b"9" * 5_000, "not read"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' twice"),
        (b"[1]", "must hold a JSON object, not a list"),
        (b'{"a": "\\uD83D"}', "half of a character"),
        (b"null", "must hold a JSON object, not null"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        foreign.read_json_object(file)


def test_a_name_stays_inside_its_folder(tmp_path: Path) -> None:
    assert foreign.inside(tmp_path, "a/b") == tmp_path / "a" / "b"
    for name in ("../x", "a/../../x", "/etc/passwd", "", "a\0b"):
        with pytest.raises(UserError, match="outside of it"):
            foreign.inside(tmp_path, name)
