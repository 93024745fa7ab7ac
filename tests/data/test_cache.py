"""A cached folder is whole or absent: after an interruption, damage, or two builders at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gpt_jax.config import Bpe, Text
from gpt_jax.data import corpus, open_data, tokenized
from gpt_jax.data.cache import build_once, cache_folder


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


@pytest.mark.parametrize("damage", ["truncated", "missing", "manifest"])
def test_a_damaged_folder_is_built_again(tmp_path: Path, damage: str) -> None:
    log: list[str] = []
    build_once(tmp_path / "a", build_with(log))
    match damage:
        case "truncated":
            (tmp_path / "a" / "part").write_text("who")
        case "missing":
            (tmp_path / "a" / "part").unlink()
        case "manifest":
            (tmp_path / "a" / "manifest.json").write_text('{"manifest": {"content"')
    build_once(tmp_path / "a", build_with(log))
    assert log == ["built", "built"] and (tmp_path / "a" / "part").read_text() == "whole"


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
