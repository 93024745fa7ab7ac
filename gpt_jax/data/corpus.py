"""Corpora: documents from a named corpus or from files, prepared once as a TFDS data set in the cache."""

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from gpt_jax.config import Text
from gpt_jax.config.code import code_hashes, digest
from gpt_jax.config.data import HeldOut
from gpt_jax.config.errors import UserError
from gpt_jax.data.cache import build_once
from gpt_jax.data.files import Document, SourceFile, find_files, python_files
from gpt_jax.data.prepared import PreparedDataset
from gpt_jax.data.progress import Advance, progress_bar
from gpt_jax.data.stored import directory_of, quiet, read_examples


@runtime_checkable
class Source(Protocol):
    """A source of documents."""

    def fingerprint(self) -> Any:
        """JSON values that change with the text, found without reading it: file names, sizes and modification times."""

    def characters(self) -> int | None:
        """The approximate length of the text; None if unknown."""

    def prepare(self, folder: Path, advance: Advance) -> None:
        """Writes the data set below `folder`, calling `advance` with the characters of each document it has written."""

    def read(self, folder: Path) -> Iterator[tuple[Document, bool | None]]:
        """Yields each document and whether it is held out for validation; None leaves that to `Corpus.read`."""


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus.

    Attributes:
      source: reads the documents.
      folder: where the prepared data set lies.
      text_hash: the SHA-256 of the names and texts of all documents.
      documents: the number of documents.
      characters: the length of all texts together.
      fixed_split: whether the corpus comes with its own validation set.
    """

    source: Source
    folder: Path
    text_hash: str
    documents: int
    characters: int
    fixed_split: bool

    def read(self, fraction: float, held_out: HeldOut) -> Iterator[tuple[Document, bool]]:
        """Yields the documents of a split in order, each with whether it is held out.

        Without a fixed split, a hash of its name decides for each document, so that about `fraction` of the documents
        are held out for validation. A single document is cut: its last `fraction` is held out. For tuning, documents
        of the validation set are skipped, and `fraction` of the others is held out by the same rules, with another
        hash.

        Raises:
          UserError: after the last document, if these are not the documents of `text_hash`.
        """
        for document, is_validation in self._split(fraction):
            if held_out == "validation":
                yield document, is_validation
            elif not is_validation:
                yield from self._tuning_split(document, fraction)

    def _split(self, fraction: float) -> Iterator[tuple[Document, bool]]:
        for document, is_validation in self._read():
            if is_validation is not None:
                yield document, is_validation
            elif self.documents == 1:
                yield from _cut(document, fraction)
            else:
                yield document, _is_chosen(document.name, fraction)

    def _read(self) -> Iterator[tuple[Document, bool | None]]:
        read = _TextHash()
        for document, is_validation in self.source.read(self.folder):
            read.update(document)
            yield document, is_validation
        if read.hexdigest() != self.text_hash:
            raise UserError(
                f"the text of the corpus is not what it was when it was first read: restore it, or delete {self.folder}"
                " to read it again"
            )

    def _tuning_split(self, document: Document, fraction: float) -> Iterator[tuple[Document, bool]]:
        if self.documents == 1:
            yield from _cut(document, fraction)
        else:
            yield document, _is_chosen(f"tuning/{document.name}", fraction)


def open_corpus(config: Text, cache: Path, progress: bool) -> Corpus:
    """Returns the corpus of `config`, preparing it if the cache does not have it.

    The cache is looked up by the names, sizes and modification times of the files, not by their content: an edit that
    keeps the size of a file, within the resolution of the file system's clock, goes unnoticed.

    Raises:
      MissingFile: no file matches.
      UserError: the corpus is unknown, has no text, or its text is not UTF-8.
      Unreachable: the corpus cannot be downloaded.
    """
    source = _source(config)
    folder = _folder(source, config, cache)
    manifest = build_once(folder, functools.partial(_build, source, _label(config), progress))
    return Corpus(source, folder, **manifest)


def corpus_folder(config: Text, cache: Path) -> Path:
    """Where the cache has the corpus of `config`, once it is prepared. Raises as `open_corpus`."""
    return _folder(_source(config), config, cache)


def _folder(source: Source, config: Text, cache: Path) -> Path:
    label = _label(config)
    key = json.dumps([preparation_version(), label, source.fingerprint()]).encode()
    name = "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in label)
    return cache / "sources" / f"{name}-{hashlib.sha256(key).hexdigest()[:16]}"


def _label(config: Text) -> str:
    return "text" if config.path is not None else config.corpus


def preparation_version() -> str:
    """Returns the SHA-256 of the code that prepares text; a cache that other code wrote is not used."""
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
            raise UserError('the corpus "text" reads your own files: say which with data.path=FILE, FOLDER or GLOB')
    return PreparedDataset(config.corpus)


def _build(source: Source, label: str, progress: bool, folder: Path) -> dict[str, Any]:
    with progress_bar(f"Reading {label}", source.characters(), progress) as advance:
        source.prepare(folder, advance)
    digest, documents, characters, sides = _TextHash(), 0, 0, set()
    for document, held_out in source.read(folder):
        digest.update(document)
        sides.add(held_out)
        documents, characters = documents + 1, characters + len(document.text)
    if not characters:
        raise UserError(f"there is no text in the data set {label}: use another one, or give data.path=FILE")
    fixed = None not in sides
    return {"text_hash": digest.hexdigest(), "documents": documents, "characters": characters, "fixed_split": fixed}


class _TextHash:
    """The SHA-256 of the names and texts of documents."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, document: Document) -> None:
        for part in (document.name.encode(), document.text.encode()):
            self._digest.update(len(part).to_bytes(8, "little") + part)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _cut(document: Document, fraction: float) -> Iterator[tuple[Document, bool]]:
    """Yields the document without its last `fraction`, which is not held out, and that last part, which is."""
    cut = int((1 - fraction) * len(document.text))
    yield Document(document.name, document.text[:cut]), False
    yield Document(document.name, document.text[cut:]), True


def _is_chosen(name: str, fraction: float) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") < fraction * 2**64


@dataclass(frozen=True)
class _Files:
    """The files at `path`, or Python's own sources if `path` is None."""

    files: list[SourceFile]
    path: str | None
    separator: str | None

    def fingerprint(self) -> Any:
        return [self.separator, [(file.name, file.size, file.modified) for file in self.files]]

    def characters(self) -> int | None:
        return sum(file.size for file in self.files)

    def prepare(self, folder: Path, advance: Advance) -> None:
        from gpt_jax.data.builders import PythonSources, TextFiles

        where: dict[str, Any] = {"data_dir": folder, "file_format": "array_record", "advance": advance}
        with quiet():
            if self.path is None:
                PythonSources(**where).download_and_prepare()
            else:
                TextFiles(path=self.path, separator=self.separator, **where).download_and_prepare()

    def read(self, folder: Path) -> Iterator[tuple[Document, bool | None]]:
        for example in read_examples(directory_of(folder), "train"):
            yield Document(example["name"].decode(), example["text"].decode()), None


class _Shakespeare:
    """Joins the three splits of `TinyShakespeare` into one document, so that `data.path=FILE` gives the same split."""

    def fingerprint(self) -> Any:
        return None

    def characters(self) -> int | None:
        return None

    def prepare(self, folder: Path, advance: Advance) -> None:
        from gpt_jax.data.builders import TinyShakespeare

        with quiet():
            TinyShakespeare(data_dir=folder, file_format="array_record").download_and_prepare()

    def read(self, folder: Path) -> Iterator[tuple[Document, bool | None]]:
        directory = directory_of(folder)
        parts = [
            example["text"] for split in ("train", "validation", "test") for example in read_examples(directory, split)
        ]
        yield Document("tiny_shakespeare", b"".join(parts).decode()), None
