"""A cached folder is whole or absent: after an interruption, damage, or two builders at once."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.config import Bpe, Characters, Text
from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.data import cache, check_data, corpus, open_data, tokenized
from gpt_jax.data.cache import build_once, cache_folder
from gpt_jax.data.files import find_files, read_documents
from tests.fuzz import damaged, examples, read_or_refuse


def build_with(log: list[str], content: str = "whole"):
    def build(folder: Path) -> dict[str, str]:
        log.append("built")
        assert not list(folder.iterdir())
        (folder / "part").write_text(content)
        return {"content": content}

    return build


def test_a_folder_is_built_once(tmp_path: Path) -> None:
    log: list[str] = []
    for _ in range(3):
        assert build_once(tmp_path / "a", build_with(log)) == {"content": "whole"}
    assert log == ["built"]


def test_a_build_that_fails_leaves_nothing_to_read(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, str]:
        (folder / "part").write_text("hal")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        build_once(tmp_path / "a", fail)
    assert not (tmp_path / "a").exists()
    assert build_once(tmp_path / "a", build_with([])) == {"content": "whole"}


def cut(folder: Path) -> None:
    (folder / "part").write_text("who")


def remove(folder: Path) -> None:
    (folder / "part").unlink()


def change_a_bit(folder: Path) -> None:
    part = folder / "part"
    before = part.stat()
    part.write_text("wholf")
    os.utime(part, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_a_pipe(folder: Path) -> None:
    (folder / "part").unlink()
    os.mkfifo(folder / "part")


def replace_all_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("whole")


def change_the_manifest(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("whole", "hole!", 1))


def write_as_before_there_were_hashes(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"manifest": {"content": "whole"}, "sizes": {"part": 5}}')


DAMAGES = (
    cut,
    remove,
    change_a_bit,
    replace_by_a_pipe,
    replace_all_by_a_file,
    change_the_manifest,
    write_as_before_there_were_hashes,
    lambda folder: (folder / "manifest.json").write_text('{"manifest": {"content"'),
    lambda folder: (folder / "manifest.json").write_bytes(b"\xff[null]"),
)


@pytest.mark.parametrize("always", [0, 2**20])
def test_a_damaged_folder_is_found_and_built_again_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, always: int
) -> None:
    monkeypatch.setattr(cache, "ALWAYS", always)
    for number, damage in enumerate(DAMAGES):
        log: list[str] = []
        folder = tmp_path / str(number)
        build_once(folder, build_with(log))
        assert cache.check(folder) == 5
        damage(folder)
        with pytest.raises(cache.Damaged, match="is damaged"):
            cache.check(folder)
        with pytest.warns(UserWarning, match="is damaged .* is not as it was written.*: it is built again"):
            assert build_once(folder, build_with(log)) == {"content": "whole"}
        assert log == ["built", "built"] and (folder / "part").read_text() == "whole"
        build_once(folder, build_with(log))
        assert log == ["built", "built"]


def test_a_large_folder_is_hashed_again_only_when_its_files_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "ALWAYS", 4)
    digest, hashed = cache._digest, []
    monkeypatch.setattr(cache, "_digest", lambda file: hashed.append(file.name) or digest(file))
    build_once(tmp_path / "a", build_with([]))
    assert hashed == ["part"]
    build_once(tmp_path / "a", build_with([]))
    assert hashed == ["part"]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for _ in range(2):
        build_once(tmp_path / "b", build_with([]))
        assert hashed == ["part", "part"]  # the first opening of the copy checks it, and notes that
    (tmp_path / "b" / "checked.json").write_text("[]")
    build_once(tmp_path / "b", build_with([]))
    assert hashed == ["part"] * 3


def test_damaged_tokens_are_made_again_from_the_text_and_refused_without_it(tmp_path: Path) -> None:
    text, config = tmp_path / "a.txt", Text(path=str(tmp_path / "a.txt"), tokenizer=Bpe(vocab_size=280))
    text.write_text("words to merge, words to learn " * 50)

    def read():
        data = open_data(config, 8, 0, tmp_path / "cache", progress=False)
        return [data.content_hash, *(np.asarray(data.batch(step, 4).tokens).tobytes() for step in range(3))]

    def flip(name: str, at: int) -> None:
        (file,) = (tmp_path / "cache").rglob(name)
        content = bytearray(file.read_bytes())
        content[at] ^= 128
        file.write_bytes(content)

    assert check_data(config, tmp_path / "cache") == 0
    first = read()
    assert check_data(config, tmp_path / "cache") > 1500
    for name in ("train.tokens", "validation.tokens", "train.starts.npy", "train.sizes.npy", "ranks.tiktoken"):
        flip(name, -3)
        with pytest.raises(cache.Damaged, match=name.replace(".", "[.]")):
            check_data(config, tmp_path / "cache")
        with pytest.warns(UserWarning, match="damaged"):
            assert read() == first
    flip("*.array_record*", 100)
    with pytest.raises(cache.Damaged, match="array_record"):
        check_data(config, tmp_path / "cache")
    with pytest.warns(UserWarning, match="damaged"):
        assert read() == first
    flip("train.tokens", 5)
    text.unlink()
    with pytest.raises(MissingFile, match="there is no text"):
        read()
    with pytest.raises(MissingFile, match="there is no text"):
        check_data(config, tmp_path / "cache")


def test_an_id_outside_the_vocabulary_never_reaches_a_device(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("abc " * 50)
    data = open_data(Text(path=str(text), tokenizer=Characters()), 8, 0, tmp_path / "cache", progress=False)
    (tokens,) = tmp_path.rglob("train.tokens")
    with tokens.open("r+b") as file:  # the memory of the open data changes with the file
        file.write(bytes([4]) * 180)
    with pytest.raises(UserError, match="outside its vocabulary of 4"):
        data.batch(0, 2)


def test_text_that_changes_while_it_is_tokenized_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "a.txt"
    text.write_text("some text " * 50)
    open_data(Text(path=str(text)), 8, 0, tmp_path / "cache", progress=False)
    read = corpus._Files.read
    monkeypatch.setattr(
        corpus._Files,
        "read",
        lambda self, folder: (
            (d._replace(text=d.text.replace("some", "same")), side) for d, side in read(self, folder)
        ),
    )
    with pytest.raises(UserError, match="is not what it was when it was first read"):
        open_data(Text(path=str(text), tokenizer=Characters()), 8, 0, tmp_path / "cache", progress=False)


def test_of_two_builders_one_builds_and_both_read(tmp_path: Path) -> None:
    log: list[str] = []

    def slowly(folder: Path) -> dict[str, str]:
        time.sleep(0.5)
        return build_with(log)(folder)

    manifests: list[dict[str, str]] = []
    threads = [threading.Thread(target=lambda: manifests.append(build_once(tmp_path / "a", slowly))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log == ["built"] and manifests == [{"content": "whole"}] * 2


def test_a_process_killed_while_it_tokenizes_costs_the_next_one_nothing_but_time(tmp_path: Path) -> None:
    text, cache = tmp_path / "a.txt", tmp_path / "cache"
    text.write_text("some text of ours " * 1000)
    script = (
        "import time; from gpt_jax.data import open_data, tokenized; from gpt_jax.config import Text\n"
        "end = tokenized._Writer.close\n"
        "tokenized._Writer.close = lambda self, ended: (end(self, ended), print('half', flush=True), time.sleep(60))\n"
        f"open_data(Text(path={str(text)!r}), 8, 0, {str(cache)!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert [folder.name.split(".")[1] for folder in cache.glob("tokens/*") if folder.is_dir()] == ["partial"]
    data = open_data(Text(path=str(text)), 8, 0, cache, progress=False)
    assert data.train_tokens == 16_200 and not list(cache.glob("tokens/*.partial"))


def test_text_is_read_and_tokenized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "a.txt"
    text.write_text("words to merge, words to learn " * 50)

    def data():
        config = Text(path=str(text), tokenizer=Bpe(vocab_size=280))
        return open_data(config, 8, 0, tmp_path / "cache", progress=False)

    first = data()
    with monkeypatch.context() as patch:
        for module in (corpus, tokenized):
            patch.setattr(module, "_build", lambda *_: pytest.fail("built again"))
        assert data().content_hash == first.content_hash
    text.write_text("Words to merge, words to learn " * 50)
    assert data().content_hash != first.content_hash


def test_a_touched_file_of_the_same_text_keeps_its_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "a.txt"
    text.write_text("some text " * 50)
    one = open_data(Text(path=str(text)), 8, 0, tmp_path / "cache", progress=False)
    os.utime(text, (1, 1))
    monkeypatch.setattr(tokenized, "_build", lambda *_: pytest.fail("tokenized again"))
    assert open_data(Text(path=str(text)), 8, 0, tmp_path / "cache", progress=False).content_hash == one.content_hash


def test_other_code_makes_its_own_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "a.txt"
    text.write_text("some text " * 50)
    for version in ("1", "2"):
        for module in (corpus, tokenized):
            monkeypatch.setattr(module, "preparation_version", lambda version=version: version)
        open_data(Text(path=str(text)), 8, 0, tmp_path / "cache", progress=False)
    assert len([folder for folder in tmp_path.glob("cache/tokens/*") if folder.is_dir()]) == 2
    assert len([folder for folder in tmp_path.glob("cache/sources/*") if folder.is_dir()]) == 2


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_JAX_CACHE", str(tmp_path / "named"))
    assert cache_folder(None) == tmp_path / "named"
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("GPT_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder(None) == tmp_path / "xdg" / "gpt_jax"


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be made .*GPT_JAX_CACHE"):
        build_once(tmp_path / "file" / "cache", build_with([]))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    (folder / "a.txt").write_text("words to merge, wörds to learn " * 50)
    open_data(Text(path=str(folder / "a.txt"), tokenizer=Characters()), 8, 0, folder / "cache", progress=False)
    return folder


@examples(6)
@given(st.data())
def test_fuzz_cache(built: Path, data: st.DataObject) -> None:
    """Whatever happens to a file of the cache, the same tokens come back."""

    def read() -> list[object]:
        opened = open_data(
            Text(path=str(built / "a.txt"), tokenizer=Characters()), 8, 0, built / "cache", progress=False
        )
        return [opened.content_hash, *(opened.batch(step, 4).tokens.tobytes() for step in range(3))]

    first = read()
    tokens = built / "cache" / "tokens"
    # What the file system says of the files differs after each rebuild; it is no part of what is damaged.
    names = sorted(str(file) for file in tokens.rglob("*") if file.is_file() and file.name != cache.CHECKED)
    file = Path(data.draw(st.sampled_from([name for name in names if not name.endswith(".lock")])))
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_or_refuse(read, lambda found: found == first) is None


@examples(10)
@given(damaged("Text, é 안 😉\n\n--\nmore\0 text\r\n".encode() * 8))
def test_fuzz_text(built: Path, content: bytes) -> None:
    (built / "b.txt").write_bytes(content)
    read_or_refuse(
        lambda: list(read_documents(find_files(str(built / "b.txt")), "--", skip_undecodable=False)),
        lambda found: (
            "".join(document.text for document in found).encode()
            == content.removeprefix(b"\xef\xbb\xbf").replace(b"--", b"")
        ),
    )
