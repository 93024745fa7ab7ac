"""Corpora: documents by the name of a corpus or by the path of files, prepared once as a TFDS data set in the cache."""

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from gpt_jax.config import Text
from gpt_jax.config.code import code_hashes, digest
from gpt_jax.config.errors import UserError
from gpt_jax.data.cache import build_once
from gpt_jax.data.files import Document, SourceFile, find_files, python_files
from gpt_jax.data.prepared import PreparedDataset
from gpt_jax.data.progress import Report, progress_bar
from gpt_jax.data.stored import directory_of, quiet, read_examples


@runtime_checkable
class Source(Protocol):
    """Where documents come from."""

    def state(self) -> Any:
        """What tells, without reading the text, whether it changed: names, sizes and times of change of files."""

    def characters(self) -> int | None:
        """About how much text there is."""

    def prepare(self, folder: Path, report: Report) -> None:
        """Writes the data set below `folder`."""

    def read(self, folder: Path) -> Iterator[tuple[Document, bool | None]]:
        """The documents, and for each whether it is held out (None: the split decides)."""


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus. `text_hash` is the SHA-256 of all names and texts; a corpus with a `fixed_split` brings its
    own validation set.
    """

    source: Source
    folder: Path
    text_hash: str
    documents: int
    characters: int
    fixed_split: bool

    def read(self, validation_fraction: float) -> Iterator[tuple[Document, bool]]:
        """The documents in order, each with whether it is held out. Of a lone one, the last part is held out."""
        for document, held_out in self.source.read(self.folder):
            if held_out is None and self.documents == 1:
                cut = int((1 - validation_fraction) * len(document.text))
                yield Document(document.name, document.text[:cut]), False
                yield Document(document.name, document.text[cut:]), True
            else:
                yield document, _is_held_out(document.name, validation_fraction) if held_out is None else held_out


def open_corpus(config: Text, cache: Path, progress: bool) -> Corpus:
    """The corpus of `config`, prepared now unless the cache has it.

    Whether it has is decided by names, sizes and times of change of the files, not by reading them: a file changed
    within the clock's resolution to a text of the same size goes unnoticed.

    Raises:
      FileNotFoundError: no such files or corpus.
      ValueError: no text, or text that is not UTF-8.
      ConnectionError: a corpus that must be downloaded cannot be.
    """
    source = _source(config)
    label = "text" if config.path is not None else config.corpus
    state = json.dumps([code_version(), label, source.state()]).encode()
    name = "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in label)
    folder = cache / "sources" / f"{name}-{hashlib.sha256(state).hexdigest()[:16]}"
    manifest = build_once(folder, functools.partial(_build, source, label, progress))
    return Corpus(source, folder, **manifest)


def code_version() -> str:
    """A hash of the code that decides which tokens a text becomes: a cache made by other code is not used."""
    hashes = code_hashes("gpt_jax.data.tokenized")
    return digest(json.dumps({name: value for name, value in hashes.items() if name.startswith("gpt_jax.data.")}))


def _source(config: Text) -> Source:
    if config.path is not None:
        return _Files(find_files(config.path), config.path, config.separator)
    match config.corpus:
        case "python":
            return _Files(python_files(), None, None)
        case "tiny_shakespeare":
            return _Shakespeare()
        case "text":
            raise UserError('The corpus "text" reads your own files: say which with data.path=FILE, FOLDER or GLOB.')
    return PreparedDataset(config.corpus)


def _build(source: Source, label: str, progress: bool, folder: Path) -> dict[str, Any]:
    with progress_bar(f"Reading {label}", source.characters(), progress) as report:
        source.prepare(folder, report)
    digest, documents, characters, sides = hashlib.sha256(), 0, 0, set()
    for document, held_out in source.read(folder):
        for part in (document.name.encode(), document.text.encode()):
            digest.update(len(part).to_bytes(8, "little") + part)
        sides.add(held_out)
        documents, characters = documents + 1, characters + len(document.text)
    if not characters:
        raise UserError(f"There is no text in the data set {label}: use another one, or give data.path=FILE.")
    fixed = None not in sides
    return {"text_hash": digest.hexdigest(), "documents": documents, "characters": characters, "fixed_split": fixed}


def _is_held_out(name: str, fraction: float) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") < fraction * 2**64


@dataclass(frozen=True)
class _Files:
    """Files at `path`; without one, Python's own sources."""

    files: list[SourceFile]
    path: str | None
    separator: str | None

    def state(self) -> Any:
        return [self.separator, [(file.name, file.size, file.modified) for file in self.files]]

    def characters(self) -> int | None:
        return sum(file.size for file in self.files)

    def prepare(self, folder: Path, report: Report) -> None:
        from gpt_jax.data.builders import PythonSources, TextFiles

        where: dict[str, Any] = {"data_dir": folder, "file_format": "array_record", "report": report}
        with quiet():
            if self.path is None:
                PythonSources(**where).download_and_prepare()
            else:
                TextFiles(path=self.path, separator=self.separator, **where).download_and_prepare()

    def read(self, folder: Path) -> Iterator[tuple[Document, bool | None]]:
        for example in read_examples(directory_of(folder), "train"):
            yield Document(example["name"].decode(), example["text"].decode()), None


class _Shakespeare:
    """The three splits are one text again, so that the split is the same as with a file of one's own."""

    def state(self) -> Any:
        return None

    def characters(self) -> int | None:
        return None

    def prepare(self, folder: Path, report: Report) -> None:
        from gpt_jax.data.builders import TinyShakespeare

        with quiet():
            TinyShakespeare(data_dir=folder, file_format="array_record").download_and_prepare()

    def read(self, folder: Path) -> Iterator[tuple[Document, bool | None]]:
        directory = directory_of(folder)
        parts = [
            example["text"] for split in ("train", "validation", "test") for example in read_examples(directory, split)
        ]
        yield Document("tiny_shakespeare", b"".join(parts).decode()), None
