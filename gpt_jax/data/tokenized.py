"""A corpus as token ids: tokenized once into memory-mapped arrays of the smallest unsigned type that holds V − 1."""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.config import Characters, Text, TokenizerFile
from gpt_jax.config.conversion import to_dict
from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.data.cache import build_once, check
from gpt_jax.data.corpus import Corpus, corpus_folder, open_corpus, preparation_version
from gpt_jax.data.files import Document
from gpt_jax.data.progress import Advance, progress_bar
from gpt_jax.data.rows import Stream
from gpt_jax.data.tokenizer import Tokenizer, load_tokenizer, make_tokenizer

CHARACTERS_AT_ONCE = 2**22
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Split:
    """One split of a corpus: its token stream and the size in UTF-8 bytes of each of its documents."""

    stream: Stream
    sizes: np.ndarray  # (documents,) int64

    def take(self, targets: int, tokenizer: Tokenizer) -> "Split":
        """Returns the split cut down to its first `targets` targets."""
        if targets >= self.stream.targets:
            return self
        tokens, starts, ended = self.stream
        tokens = tokens[: targets + 1]
        starts = starts[: np.searchsorted(starts, targets + 1)]
        last = tokens[starts[-1] + 1 if ended else starts[-1] :]
        sizes = np.append(self.sizes[: len(starts) - 1], len(tokenizer.decode_bytes(last)))
        return Split(Stream(tokens, starts, ended), sizes)

    def target_bytes(self, tokenizer: Tokenizer) -> int:
        """Returns the UTF-8 bytes of the text that the targets of weight 1 stand for; an end-of-text token has 0."""
        if self.stream.ended:
            return int(self.sizes.sum())
        # The first token of each document is no target.
        first, counts = np.unique(self.stream.tokens[self.stream.starts], return_counts=True)
        widths = np.array([len(tokenizer.decode_bytes([index])) for index in first.tolist()])
        return int(self.sizes.sum() - widths @ counts)


@dataclass(frozen=True)
class TokenizedText:
    """The training and the held-out text. `content_hash` changes with the text, the tokenizer or the split."""

    tokenizer: Tokenizer
    train: Split
    validation: Split
    content_hash: str


def tokenized_text(config: Text, cache: Path, progress: bool) -> TokenizedText:
    """Returns the tokens of a corpus, preparing and tokenizing it if the cache does not have them.

    Raises:
      MissingFile, Unreachable, UserError: see `open_corpus` and `load_tokenizer`; UserError also if a split has no
        target or the tokenizer cannot encode the text.
    """
    corpus = open_corpus(config, cache, progress)
    loaded = load_tokenizer(config.tokenizer.path) if isinstance(config.tokenizer, TokenizerFile) else None
    folder = _folder(corpus, config, loaded, cache)
    manifest = build_once(folder, functools.partial(_build, corpus, config, loaded, progress))
    tokenizer = load_tokenizer(folder / "tokenizer") if loaded is None else loaded
    if max(manifest["largest"].values()) >= tokenizer.vocab_size:
        raise UserError(f"the tokens in {folder} are not those of the tokenizer beside them: delete the folder")
    train, validation = (_open(folder / split, manifest) for split in SPLITS)
    if config.validation_tokens is not None:
        validation = validation.take(config.validation_tokens, tokenizer)
    fraction, *tuning = _split_recipe(corpus, config)
    content = json.dumps([corpus.text_hash, tokenizer.content_hash(), fraction, config.validation_tokens, *tuning])
    return TokenizedText(tokenizer, train, validation, hashlib.sha256(content.encode()).hexdigest())


def check_tokens(config: Text, cache: Path) -> int:
    """Compares every byte that the cache has of a corpus and its tokens with the hashes in its manifests.

    Returns the number of bytes read; 0 if the cache has neither the corpus nor its tokens. Builds nothing.

    Raises:
      Damaged: a file is not as it was written. Opening the data builds it again.
      MissingFile, UserError: the text or the tokenizer files are gone or damaged, so that nothing can be looked up.
    """
    place = corpus_folder(config, cache)
    try:
        size = check(place)
    except MissingFile:
        return 0
    loaded = load_tokenizer(config.tokenizer.path) if isinstance(config.tokenizer, TokenizerFile) else None
    folder = _folder(open_corpus(config, cache, progress=False), config, loaded, cache)
    try:
        return size + check(folder)
    except MissingFile:
        return size


def _folder(corpus: Corpus, config: Text, loaded: Tokenizer | None, cache: Path) -> Path:
    """Where the cache has the tokens of a corpus."""
    # A saved tokenizer is identified by its content; one to be trained by its configuration, since the key has the
    # text.
    recipe = to_dict(config.tokenizer) if loaded is None else loaded.content_hash()
    parts = [preparation_version(), corpus.text_hash, recipe, *_split_recipe(corpus, config)]
    key = json.dumps(parts, sort_keys=True)
    return cache / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:32]


def _split_recipe(corpus: Corpus, config: Text) -> list[Any]:
    """JSON values that identify the split. That of the validation set has no name: hashes of earlier runs lack one."""
    if config.held_out == "validation":
        return [None if corpus.fixed_split else config.validation_fraction]
    return [config.validation_fraction, config.held_out]


def _build(corpus: Corpus, config: Text, loaded: Tokenizer | None, progress: bool, folder: Path) -> dict[str, Any]:
    with progress_bar("Training the tokenizer", corpus.characters, progress and loaded is None) as advance:
        tokenizer = loaded or make_tokenizer(config.tokenizer, _training_texts(corpus, config, advance))
    if loaded is None:
        tokenizer.save(folder / "tokenizer")
    dtype, end = np.min_scalar_type(tokenizer.vocab_size - 1), tokenizer.end_of_text
    writers = [_Writer(folder / split, dtype, end) for split in SPLITS]
    with progress_bar("Tokenizing", corpus.characters, progress) as advance:
        for documents in _groups(corpus.read(config.validation_fraction, config.held_out)):
            ids = tokenizer.encode_batch([document.text for document, _ in documents], "none")
            for (document, held_out), one in zip(documents, ids, strict=True):
                writers[held_out].write(one, len(document.text.encode()), tokenizer.vocab_size)
                advance(len(document.text))
    # A single document is cut between training and validation: neither part ends with an end of text.
    counts = {split: writer.close(ended=corpus.documents > 1) for split, writer in zip(SPLITS, writers, strict=True)}
    for split, count in counts.items():
        if count < 1:
            raise UserError(
                f"the {split} split of {corpus.documents} document(s) has no token to predict: give more text, divide "
                f"a file with data.separator, or change data.validation_fraction ({config.validation_fraction})"
            )
    largest = {split: writer.largest for split, writer in zip(SPLITS, writers, strict=True)}
    return {"dtype": dtype.name, "ended": end is not None, "largest": largest}


def _training_texts(corpus: Corpus, config: Text, advance: Advance) -> Iterator[str]:
    """Yields the texts that a tokenizer is trained on: the training split, with the tuning set.

    A character vocabulary is made of both splits, because it could not encode a character that it lacks.
    """
    everything = isinstance(config.tokenizer, Characters)
    for document, held_out in corpus.read(config.validation_fraction, "validation"):
        if everything or not held_out:
            yield document.text
        advance(len(document.text))


def _groups(documents: Iterable[tuple[Document, bool]]) -> Iterator[list[tuple[Document, bool]]]:
    """Groups consecutive documents into lists of about CHARACTERS_AT_ONCE characters, to be encoded together."""
    group, characters = [], 0
    for document, held_out in documents:
        group.append((document, held_out))
        characters += len(document.text)
        if characters >= CHARACTERS_AT_ONCE:
            yield group
            group, characters = [], 0
    if group:
        yield group


class _Writer:
    """Writes the stream of one split to `PATH.tokens`, `PATH.starts.npy` and `PATH.sizes.npy`."""

    def __init__(self, path: Path, dtype: np.dtype, end: int | None):
        self._path, self._dtype, self._end = path, dtype, end
        self._file = open(f"{path}.tokens", "wb")
        self._count = 0
        self.largest = 0  # id written
        self._starts: list[int] = []
        self._sizes: list[int] = []

    def write(self, ids: np.ndarray, size: int, vocab_size: int) -> None:
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
            raise UserError(f"the tokenizer gave an id outside its vocabulary of {vocab_size}: use another tokenizer")
        if self._end is None and not len(ids):
            return
        self._starts.append(self._count)
        self._sizes.append(size)
        self._append([] if self._end is None else [self._end])
        self._append(ids)

    def close(self, ended: bool) -> int:
        """Finishes the stream, with an end-of-text token if `ended`, and returns its number of targets of weight 1."""
        if ended and self._end is not None and self._starts:
            self._append([self._end])
        self._file.close()
        np.save(f"{self._path}.starts.npy", np.array(self._starts, np.int64))
        np.save(f"{self._path}.sizes.npy", np.array(self._sizes, np.int64))
        return self._count - (len(self._starts) if self._end is None else min(len(self._starts), 1))

    def _append(self, ids: Any) -> None:
        ids = np.asarray(ids).astype(self._dtype)
        self.largest = max(self.largest, int(ids.max(initial=0)))
        self._file.write(ids.tobytes())
        self._count += len(ids)


def _open(path: Path, manifest: dict[str, Any]) -> Split:
    tokens = np.asarray(np.memmap(f"{path}.tokens", np.dtype(manifest["dtype"]), "r"))
    stream = Stream(tokens, np.load(f"{path}.starts.npy"), manifest["ended"])
    return Split(stream, np.load(f"{path}.sizes.npy"))
