"""From files to tokens: which text is read, how it is divided and split, and what is said where there is none."""

import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from gpt_jax.config import Bpe, Bytes, Characters, Text, TokenizerConfig, TokenizerFile
from gpt_jax.config.errors import ConfigError, MissingFile, UserError
from gpt_jax.data import Data, builders, open_data
from gpt_jax.data.files import find_files, python_files, read_documents
from gpt_jax.data.tokenizer import read_chunks
from tests.fuzz import bounded

END = 256


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(cache: Path, length: int = 8, **settings: object) -> Data:
    return open_data(Text(**settings), length, 0, cache, progress=False)


def targets(data: Data, split: str) -> list[int]:
    """Every counted target of a split: for validation in order, for training in that of the first epoch."""
    if split == "validation":
        batches = list(data.validation(1))
    else:
        assert data.train_rows is not None
        batches = [data.batch(step, 1) for step in range(data.train_rows)]
    return [index for batch in batches for index in batch.targets[batch.weights > 0].tolist()]


def texts(data: Data, split: str) -> set[str]:
    """The documents of a split that fits into one row, whatever the order."""
    assert split == "validation" or data.train_rows == 1
    return {bytes(part).decode() for part in _divided(targets(data, split)) if part}


def _divided(ids: list[int]) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for index in ids:
        if index == END:
            parts.append([])
        else:
            parts[-1].append(index)
    return parts


class TestSplit:
    def test_one_document_is_cut_at_a_character_as_nanogpt_does(self, cache: Path, shared: Path) -> None:
        data = read(cache, 64, path=str(shared / "data" / "tinyshakespeare.txt"), tokenizer=Characters())
        assert data.vocab_size == 65
        assert (data.train_tokens, data.validation_tokens) == (1_003_854 - 1, 111_540 - 1)
        assert data.validation_bytes == data.validation_tokens
        text = (shared / "data" / "tinyshakespeare.txt").read_text()
        assert data.tokenizer.decode(targets(data, "validation")) == text[1_003_855:]
        assert data.batch(0, 2).segments is None

    def test_the_cut_counts_characters_and_validation_has_all_of_them(self, cache: Path, tmp_path: Path) -> None:
        text = "äöüß" * 25
        data = read(cache, path=write(tmp_path / "a.txt", text), validation_fraction=0.3)
        assert bytes(targets(data, "validation")).decode() == text[70:]
        assert data.validation_bytes == 60 and data.train_tokens == 140

    def test_several_documents_fall_whole_on_one_side_by_a_hash_of_their_name(
        self, cache: Path, tmp_path: Path
    ) -> None:
        for number in range(200):
            write(tmp_path / "some" / f"{number}.txt", f"text {number}!")
        fraction = 0.25
        data = read(cache, 4096, path=str(tmp_path), validation_fraction=fraction)
        held_out, trained = texts(data, "validation"), set()
        for number in range(200):
            digest = hashlib.sha256(f"some/{number}.txt".encode()).digest()
            if int.from_bytes(digest[:8], "little") / 2**64 >= fraction:
                trained.add(number)
        assert held_out == {f"text {number}!" for number in range(200) if number not in trained}
        assert 30 < len(held_out) < 70
        smaller = texts(read(cache, 4096, path=str(tmp_path), validation_fraction=0.1), "validation")
        assert smaller < held_out, "a smaller fraction must hold out fewer of the same documents"
        write(tmp_path / "some" / "200.txt", "text 200!")
        grown = texts(read(cache, 4096, path=str(tmp_path), validation_fraction=fraction), "validation")
        assert grown - {"text 200!"} == held_out, "another document must not move the others"

    def test_the_tuning_set_of_one_document_ends_its_training_part(self, cache: Path, tmp_path: Path) -> None:
        text = "".join(map(chr, range(0x4E00, 0x4E00 + 100)))
        settings = {"path": write(tmp_path / "a.txt", text), "tokenizer": Characters(), "validation_fraction": 0.2}
        plain, tuning = read(cache, 128, **settings), read(cache, 128, held_out="tuning", **settings)
        assert tuning.tokenizer.content_hash() == plain.tokenizer.content_hash()
        assert tuning.tokenizer.decode(targets(tuning, "train")) == text[1:64]
        assert tuning.tokenizer.decode(targets(tuning, "validation")) == text[65:80]
        few = read(cache, 128, held_out="tuning", validation_tokens=5, **settings)
        assert few.tokenizer.decode(targets(few, "validation")) == text[65:70]
        assert len({data.content_hash for data in (plain, tuning, few)}) == 3

    @pytest.mark.parametrize("tokenizer", [Bytes(), Bpe(vocab_size=270)])
    def test_tuning_documents_come_from_training_and_validation_is_left_out(
        self, tokenizer: TokenizerConfig, cache: Path, tmp_path: Path
    ) -> None:
        for number in range(200):
            write(tmp_path / f"{number}.txt", f"text {number}!")
        settings = {"path": str(tmp_path), "validation_fraction": 0.25, "tokenizer": tokenizer}
        plain, tuning = read(cache, 4096, **settings), read(cache, 4096, held_out="tuning", **settings)
        assert tuning.tokenizer.content_hash() == plain.tokenizer.content_hash()
        assert tuning.content_hash != plain.content_hash

        def documents(data: Data, split: str) -> set[str]:
            end = data.tokenizer.end_of_text
            texts = "".join("|" if i == end else data.tokenizer.decode([i]) for i in targets(data, split))
            return set(texts.strip("|").split("|"))

        held_out, trained = documents(tuning, "validation"), documents(tuning, "train")
        assert held_out | trained == documents(plain, "train") and not held_out & trained
        assert 20 < len(held_out) < 55

    def test_an_empty_side_is_refused_with_advice(self, cache: Path, tmp_path: Path) -> None:
        for name in "ab":
            write(tmp_path / name, "some text")
        with pytest.raises(ValueError, match="data.validation_fraction"):
            read(cache, path=str(tmp_path), validation_fraction=0.001)
        with pytest.raises(ValueError, match="data.validation_fraction"):
            read(cache, path=write(tmp_path / "a", "x"), tokenizer=Characters())
        with pytest.raises(ValueError, match="no token to predict"):
            read(cache, path=write(tmp_path / "c", "a b c d e f g"), tokenizer=Characters(), separator=" ")

    def test_a_lone_document_gets_no_end_and_several_do(self, cache: Path, tmp_path: Path) -> None:
        one = read(cache, path=write(tmp_path / "a.txt", "abc " * 30))
        assert END not in [*targets(one, "train"), *targets(one, "validation")]
        assert one.batch(0, 1).positions is None
        many = read(cache, path=str(tmp_path / "a.txt"), separator="b", validation_fraction=0.3)
        assert targets(many, "train").count(END) + targets(many, "validation").count(END) == 31
        assert many.batch(0, 1).positions is not None


class TestFiles:
    def test_a_file_a_folder_and_a_glob(self, tmp_path: Path) -> None:
        for name in ("b.txt", "a.txt", "deep/er/c.txt", "deep/d.md", ".hidden", ".git/e.txt"):
            write(tmp_path / name, name)
        names = lambda path: [file.name for file in find_files(str(path))]  # noqa: E731
        assert names(tmp_path) == ["a.txt", "b.txt", "deep/d.md", "deep/er/c.txt"]
        assert names(tmp_path / "*.txt") == ["a.txt", "b.txt"]
        assert names(tmp_path / "**" / "*.txt") == ["a.txt", "b.txt", "deep/er/c.txt"]
        assert names(tmp_path / "deep" / "[a-d].md") == ["d.md"]
        assert names(tmp_path / ".hidden") == [".hidden"]
        write(tmp_path / "odd[1].txt", "")
        assert names(tmp_path / "odd[1].txt") == ["odd[1].txt"]

    def test_a_relative_path_is_relative_to_the_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "a" / "b.txt", "x")
        monkeypatch.chdir(tmp_path)
        assert [file.name for file in find_files("*/b.txt")] == ["a/b.txt"]
        assert [file.name for file in find_files("a")] == [file.name for file in find_files("a/b.txt")] == ["b.txt"]

    @pytest.mark.parametrize("name", ["missing.txt", "*.nothing", "empty folder"])
    def test_no_file_is_one_sentence(self, cache: Path, tmp_path: Path, name: str) -> None:
        (tmp_path / "empty folder").mkdir()
        with pytest.raises(FileNotFoundError, match="there is no text at data.path=.*: give a file"):
            read(cache, path=str(tmp_path / name))

    def test_a_separator_belongs_to_no_document_and_empty_ones_are_left_out(self, cache: Path, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "one\n---\ntwo\n---\n\n---\n" + "\n---\n".join(map(str, range(20))))
        data = read(cache, path=path, separator="\n---\n", validation_fraction=0.4)
        assert texts(data, "validation") < {"one", "two", *map(str, range(20))}
        assert data.train_tokens + data.validation_tokens == 3 + 3 + 10 + 20 + 22

    def test_a_separator_needs_a_path(self) -> None:
        with pytest.raises(ConfigError, match="data.separator splits the files of data.path"):
            Text(separator="\n\n")


class TestOddText:
    @pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
    def test_an_empty_corpus_is_refused(self, cache: Path, tmp_path: Path, content: bytes) -> None:
        with pytest.raises(ValueError, match="there is no text in"):
            read(cache, path=write(tmp_path / "empty.txt", content))

    def test_a_corpus_shorter_than_a_row_is_one_padded_row(self, cache: Path, tmp_path: Path) -> None:
        data = read(cache, 64, path=write(tmp_path / "short.txt", "hello world"), validation_fraction=0.4)
        assert (data.train_rows, data.validation_rows) == (1, 1)
        for step in range(3):
            batch = data.batch(step, 2)
            assert batch.weights.sum() == 12 and bytes(batch.targets[1, :6].tolist()) == b"hello "
        assert bytes(targets(data, "validation")) == b"world"

    def test_text_that_is_not_utf8_is_refused_by_name_and_place(self, cache: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"latin.txt is not UTF-8 text \(byte 3 is 0xe9\): convert it"):
            read(cache, path=write(tmp_path / "latin.txt", "café".encode("latin-1")))
        with pytest.raises(ValueError, match="is not UTF-8"):
            read(cache, path=write(tmp_path / "windows.txt", "text".encode("utf-16")))

    def test_a_byte_order_mark_goes_and_line_ends_and_nuls_stay(self, cache: Path, tmp_path: Path) -> None:
        text = "one\r\ntwo\rthree\n\0four\ufefffive\u2028" * 2
        data = read(cache, path=write(tmp_path / "odd.txt", b"\xef\xbb\xbf" + text.encode()), validation_fraction=0.5)
        rows = data.batch(0, data.train_rows or 0)
        order = np.argsort(
            [
                text.encode().find(bytes(row[weight > 0].tolist()))
                for row, weight in zip(rows.targets, rows.weights, strict=True)
            ]
        )
        first = bytes(rows.targets[order][rows.weights[order] > 0].tolist())
        assert first + bytes(targets(data, "validation")) == text.encode()

    def test_special_tokens_in_documents_are_ordinary_text(self, cache: Path, tmp_path: Path) -> None:
        data = read(cache, path=write(tmp_path / "a.txt", "<|endoftext|>" * 10), validation_fraction=0.5)
        assert bytes(targets(data, "validation")) == b"<|endoftext|>" * 5

    def test_one_line_of_50_mb(self, cache: Path, tmp_path: Path) -> None:
        line = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, 50_000_000, np.uint8).tobytes()
        data = read(cache, 1024, path=write(tmp_path / "line.txt", line), validation_fraction=0.001)
        assert data.train_tokens == 49_950_000 and data.validation_tokens == 50_000
        assert bytes(targets(data, "validation")) == line[49_950_000:]

    def test_a_vocabulary_beyond_16_bits(self, cache: Path, tmp_path: Path) -> None:
        text = "".join(chr(code) for code in range(0x10000, 0x10000 + 70_000)) * 2
        data = read(cache, 64, path=write(tmp_path / "many.txt", text), tokenizer=Characters(), validation_fraction=0.5)
        assert data.vocab_size == 70_000
        assert targets(data, "validation") == list(range(1, 70_000))
        assert [file.stat().st_size for file in cache.glob("tokens/*/validation.tokens")].count(280_000) == 1

    @pytest.mark.parametrize(("count", "width"), [(256, 1), (257, 2)])
    def test_the_smallest_type_that_holds_the_vocabulary(self, tmp_path: Path, count: int, width: int) -> None:
        text = "".join(map(chr, range(0x400, 0x400 + count))) * 2
        data = read(
            tmp_path / "cache", path=write(tmp_path / "a.txt", text), tokenizer=Characters(), validation_fraction=0.5
        )
        (file,) = (tmp_path / "cache").glob("tokens/*/validation.tokens")
        assert data.vocab_size == count and file.stat().st_size == count * width
        assert targets(data, "validation") == list(range(1, count))


class TestTokenizers:
    def test_bpe_is_trained_on_the_training_split_alone(self, cache: Path, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "abab " * 100 + "xyxy " * 100)
        data = read(cache, path=path, tokenizer=Bpe(vocab_size=259), validation_fraction=0.5)
        assert data.vocab_size == 259
        assert len(data.tokenizer.encode("abab")) < 4 and len(data.tokenizer.encode("xyxy")) == 4

    def test_characters_know_the_held_out_ones(self, cache: Path, tmp_path: Path) -> None:
        data = read(cache, path=write(tmp_path / "a.txt", "ab" * 50 + "z"), tokenizer=Characters())
        assert data.vocab_size == 3

    def test_a_saved_tokenizer_is_used_as_it_is(self, cache: Path, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "the cat sat on the mat " * 50)
        first = read(cache, path=path, tokenizer=Bpe(vocab_size=270))
        first.tokenizer.save(tmp_path / "saved")
        second = read(cache, path=path, tokenizer=TokenizerFile(path=str(tmp_path / "saved")))
        assert second.content_hash == first.content_hash
        np.testing.assert_array_equal(second.batch(3, 4).tokens, first.batch(3, 4).tokens)


class TestContentHash:
    def test_it_changes_with_text_tokenizer_and_split_and_with_nothing_else(self, cache: Path, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "some text to hash " * 10)
        base = read(cache, path=path)
        assert base.content_hash == read(tmp_path / "elsewhere", 32, path=path, seed=9).content_hash
        others = [
            read(cache, path=path, tokenizer=Characters()),
            read(cache, path=path, validation_fraction=0.2),
            read(cache, path=path, validation_tokens=5),
            read(cache, path=write(tmp_path / "b" / "a.txt", "Some text to hash " * 10)),
        ]
        assert len({base.content_hash, *(other.content_hash for other in others)}) == 5


class TestPython:
    def test_it_is_the_standard_library_split_by_path(self, cache: Path) -> None:
        names = [file.name for file in python_files()]
        assert "json/decoder.py" in names and names == sorted(names) and len(names) > 300
        assert not any(part in ("test", "tests", "site-packages") for name in names for part in name.split("/"))
        data = read(cache, 256)
        assert data.vocab_size == 257 and data.train_tokens > 10 * 2**18
        assert 0.03 < data.validation_tokens / (data.train_tokens + data.validation_tokens) < 0.25
        start = time.process_time()
        again = read(cache, 256)
        assert time.process_time() - start < 2
        assert again.content_hash == data.content_hash
        np.testing.assert_array_equal(again.batch(5, 4).tokens, data.batch(5, 4).tokens)

    def test_sources_that_are_not_utf8_are_left_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "lib" / "latin.py", b"# -*- coding: latin-1 -*-\n# \xe9\n")
        for number in range(30):
            write(tmp_path / "lib" / f"m{number}.py", f"x = {number}\n")
        monkeypatch.setattr("gpt_jax.data.files.sysconfig.get_paths", lambda: {"stdlib": str(tmp_path / "lib")})
        data = read(tmp_path / "cache", 4096)
        assert texts(data, "train") | texts(data, "validation") == {f"x = {n}\n" for n in range(30)}
        assert data.train_tokens + data.validation_tokens == 10 * 6 + 20 * 7 + 30


class TestTinyShakespeare:
    def test_it_is_the_same_data_as_the_file(self, cache: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = shared / "data" / "tinyshakespeare.txt"
        monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: file.open("rb"))
        data = read(cache, 64, corpus="tiny_shakespeare", tokenizer=Characters())
        same = read(cache, 64, path=str(file), tokenizer=Characters())
        assert (data.train_tokens, data.validation_tokens) == (same.train_tokens, same.validation_tokens)
        for step in (0, 2000):
            np.testing.assert_array_equal(data.batch(step, 4).tokens, same.batch(step, 4).tokens)

    def test_the_builder_has_the_shape_of_the_stock_one(
        self, tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = (shared / "data" / "tinyshakespeare.txt").read_bytes()
        monkeypatch.setattr(builders, "_download", lambda url, sha256: text)
        builder = builders.TinyShakespeare(data_dir=tmp_path, file_format="array_record")
        builder.download_and_prepare()
        parts = {split: builder.as_data_source(split) for split in ("train", "validation", "test")}
        assert all(len(part) == 1 and list(part[0]) == ["text"] for part in parts.values())
        assert [len(part[0]["text"]) for part in parts.values()] == [1_003_854, 55_770, 55_770]
        assert b"".join(part[0]["text"] for part in parts.values()) == text

    @pytest.mark.parametrize("fault", ["refused", "hangs", "other"])
    def test_without_it_one_sentence_within_seconds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        def urlopen(url: str, timeout: float) -> object:
            if fault == "refused":
                raise urllib.error.URLError("no route to host")
            if fault == "other":
                return (Path(__file__)).open("rb")
            time.sleep(60)
            raise AssertionError

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        if fault == "hangs":
            assert builders.DOWNLOAD_LIMIT <= 12
            monkeypatch.setattr(builders, "DOWNLOAD_LIMIT", 0.5)
        start = time.perf_counter()
        with pytest.raises(ConnectionError, match="could not be downloaded.*pass it as data.path=FILE"):
            read(tmp_path, corpus="tiny_shakespeare")
        assert time.perf_counter() - start < 10
        assert not list(tmp_path.glob("sources/*/manifest.json"))


class TestPrepared:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        return tmp_path

    def prepare(self, folder: Path, name: str, features: dict[str, object], **splits: list[dict[str, object]]) -> None:
        def generate(self: object, examples: list[dict[str, object]]) -> object:
            yield from enumerate(examples)

        body = {
            "name": name,
            "VERSION": tfds.core.Version("1.2.3"),
            "_info": lambda self: tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            ),
            "_split_generators": lambda self, dl: {k: self._generate_examples(v) for k, v in splits.items()},
            "_generate_examples": generate,
            "__module__": "builders",
        }
        kind = type(tfds.core.GeneratorBasedBuilder)(
            name, (tfds.core.GeneratorBasedBuilder,), body, skip_registration=True
        )
        tfds.disable_progress_bar()
        kind(data_dir=folder, file_format="array_record").download_and_prepare()

    def test_its_own_validation_split_and_its_one_text_feature_are_used(self, folder: Path) -> None:
        features = {"id": tfds.features.Scalar(np.int64), "body": tfds.features.Text()}
        examples = lambda word, count: [{"id": n, "body": f"{word} {n}"} for n in range(count)]  # noqa: E731
        self.prepare(folder, "mine", features, train=examples("train", 9), test=examples("test", 3))
        for name in ("mine", "mine:1.2.3"):
            data = read(folder / "cache", 4096, corpus=name)
            assert texts(data, "validation") == {f"test {n}" for n in range(3)}
            assert texts(data, "train") == {f"train {n}" for n in range(9)}
        tuning = read(folder / "cache", 4096, corpus="mine", held_out="tuning", validation_fraction=0.4)
        assert texts(tuning, "validation") | texts(tuning, "train") == {f"train {n}" for n in range(9)}

    def test_without_one_examples_are_held_out(self, folder: Path) -> None:
        examples = [{"text": f"example {n}", "title": "t"} for n in range(60)]
        self.prepare(folder, "plain", {"text": tfds.features.Text(), "title": tfds.features.Text()}, train=examples)
        data = read(folder / "cache", 4096, corpus="plain", validation_fraction=0.3)
        held_out = texts(data, "validation")
        assert 5 < len(held_out) < 35 and held_out | texts(data, "train") == {f"example {n}" for n in range(60)}

    def test_a_change_of_the_data_set_is_seen(self, folder: Path) -> None:
        for word in ("first", "second!"):
            self.prepare(
                folder, "mine", {"text": tfds.features.Text()}, train=[{"text": word}] * 9, test=[{"text": word}]
            )
            assert texts(read(folder / "cache", 4096, corpus="mine"), "validation") == {word}
            for file in sorted(folder.glob("mine/1.2.3/*")):
                file.unlink()
            (folder / "mine" / "1.2.3").rmdir()

    def test_damage_is_found_by_its_checksums(self, folder: Path) -> None:
        self.prepare(folder, "mine", {"text": tfds.features.Text()}, train=[{"text": f"text {n}"} for n in range(9)])
        good = read(folder / "cache", corpus="mine", validation_fraction=0.4).content_hash
        (records,) = folder.rglob("*.array_record*")
        for file, where in (
            (records, 100),
            (folder / "mine" / "1.2.3" / "features.json", 9),
        ):
            content = bytearray(file.read_bytes())
            content[where] ^= 16
            file.write_bytes(content)
            with pytest.raises(UserError, match=r"^the data set .* is damaged \(.*\): prepare it again$"):
                read(folder / "cache", corpus="mine", validation_fraction=0.4)
            content[where] ^= 16
            file.write_bytes(content)
            assert read(folder / "cache", corpus="mine", validation_fraction=0.4).content_hash == good

    def test_what_cannot_be_read_is_refused(self, folder: Path) -> None:
        with pytest.raises(ValueError, match='the corpus "pyhton" is neither "python"'):
            read(folder / "cache", corpus="pyhton")
        with pytest.raises(ValueError, match="say which with data.path=FILE"):
            read(folder / "cache", corpus="text")
        two = {"a": tfds.features.Text(), "b": tfds.features.Text()}
        self.prepare(folder, "two", two, train=[{"a": "x", "b": "y"}])
        with pytest.raises(ValueError, match="the data set two has the text features a, b: use one"):
            read(folder / "cache", corpus="two")
        info = folder / "two" / "1.2.3" / "dataset_info.json"
        content = json.loads(info.read_text())
        content["fileFormat"] = "tfrecord"
        info.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="stored as tfrecord.*file_format='array_record'"):
            read(folder / "cache", corpus="two")


def test_text_builders_are_tfds_data_sets(tmp_path: Path) -> None:
    write(tmp_path / "texts" / "a.txt", "one")
    write(tmp_path / "texts" / "b.txt", "twö")
    builder = builders.TextFiles(path=str(tmp_path / "texts"), data_dir=tmp_path / "tfds", file_format="array_record")
    builder.download_and_prepare()
    source = builder.as_data_source("train")
    assert [source[i] for i in range(2)] == [
        {"name": b"a.txt", "text": b"one"},
        {"name": b"b.txt", "text": "twö".encode()},
    ]


def test_no_tensorflow_no_noise_and_a_second_run_ready_in_two_seconds(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "some text " * 1000)
    script = (
        "import sys, time, gpt_jax.data; from gpt_jax.config import Text\n"
        "start = time.process_time()  # not the clock: other work on the machine must not fail this test\n"
        f"data = gpt_jax.data.open_data(Text(path={path!r}), 8, 0, {str(tmp_path / 'cache')!r})\n"
        "next(data.batches(0, 100, 4))\n"
        "assert 'tensorflow' not in sys.modules\n"
        "assert time.process_time() - start < float(sys.argv[1])\n"
    )
    for limit in ("60", "2"):
        result = subprocess.run([sys.executable, "-c", script, limit], capture_output=True, text=True, timeout=120)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_what_is_no_text_is_refused_within_bounds(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/zero"):
        with bounded(), pytest.raises(UserError, match="is not a file but"):
            find_files(path)
        with bounded(), pytest.raises(UserError, match="is not a file but"):
            list(read_chunks([path], lambda size: None))
    for path in ("a\0b", "\ud800"):
        with pytest.raises(UserError, match="is not a path"):
            find_files(path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in ("x" * 5000, str(tmp_path / "loop"), str(tmp_path / "[")):
        with pytest.raises(MissingFile, match="there is no text"):
            find_files(path)
    write(tmp_path / "a.txt", "text")
    assert [file.name for file in find_files(str(tmp_path))] == ["a.txt"]  # pipes in a folder are passed over
    assert [file.name for file in find_files(str(tmp_path / "*"))] == ["a.txt"]


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    files = find_files(write(tmp_path / "a.txt", "text"))
    write(tmp_path / "a.txt", "text and more")
    with pytest.raises(UserError, match="changes while it is read"):
        list(read_documents(files, None, skip_undecodable=False))
