"""TFDS builders that run without TensorFlow.

They store examples as array_record, the only random-access format that TFDS both writes without TensorFlow and reads
back completely (its parquet writer loses rows).

    builder = TextFiles(path="books/*.txt", data_dir=..., file_format="array_record")
    builder.download_and_prepare()
    builder.as_data_source("train")[0]["text"]
"""

import hashlib
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from gpt_jax.config.errors import Unreachable, UserError
from gpt_jax.data.files import Document, find_files, python_files, read_documents
from gpt_jax.data.progress import Advance, tracked

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
DOWNLOAD_LIMIT = 12.0  # seconds


class _Documents(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """One split with one example per document, in the order of the documents' names."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, advance: Advance = lambda characters: None, **kwargs: Any):
        self._advance = advance
        super().__init__(**kwargs)

    def _documents(self) -> Iterable[Document]:
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"name": tfds.features.Text(), "text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, str]]]:
        number = -1
        for number, document in enumerate(tracked(self._documents(), self._advance)):
            yield number, document._asdict()
        if number < 0:
            raise UserError(
                f"there is no text in the files of the corpus {self.name}: give at least one file that is not empty"
            )


class PythonSources(_Documents, skip_registration=True):  # type: ignore[call-arg]
    """The source files of the running Python's standard library; skips files that are not UTF-8."""

    name = "python"

    def _documents(self) -> Iterable[Document]:
        return read_documents(python_files(), separator=None, skip_undecodable=True)


class TextFiles(_Documents, skip_registration=True):  # type: ignore[call-arg]
    """The files at `path` (a file, folder or glob): one document per file, or per part between separators."""

    name = "text"

    def __init__(self, *, path: str, separator: str | None = None, **kwargs: Any):
        self._path, self._separator = path, separator
        name = hashlib.sha256(repr((path, separator)).encode()).hexdigest()[:16]
        config = tfds.core.BuilderConfig(
            name=name, version=self.VERSION, description=f"{path}, separator {separator!r}"
        )
        super().__init__(config=config, **kwargs)

    def _documents(self) -> Iterable[Document]:
        return read_documents(find_files(self._path), self._separator, skip_undecodable=False)


class TinyShakespeare(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """40,000 lines of Shakespeare, split 90%, 5% and 5% as in TFDS's own `tiny_shakespeare`."""

    name = "tiny_shakespeare"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True, homepage=SHAKESPEARE_URL)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        text = _download(SHAKESPEARE_URL, SHAKESPEARE_SHA256).decode("utf-8")
        held_out = text[int(len(text) * 0.9) :]
        middle = int(len(held_out) * 0.5)
        splits = {"train": text[: int(len(text) * 0.9)], "validation": held_out[:middle], "test": held_out[middle:]}
        return {name: self._generate_examples(part) for name, part in splits.items()}

    def _generate_examples(self, text: str) -> Iterator[tuple[int, dict[str, str]]]:
        yield 0, {"text": text}


def _download(url: str, sha256: str) -> bytes:
    """Downloads `url` and checks its SHA-256.

    Raises:
      Unreachable: the download failed, took longer than DOWNLOAD_LIMIT seconds, or returned another file.
    """
    result: list[bytes | Exception] = []

    def fetch() -> None:
        try:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_LIMIT) as response:
                result.append(response.read())
        except Exception as error:
            result.append(error)

    # On a thread, because the timeout of `urlopen` does not cover looking up the host name.
    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(DOWNLOAD_LIMIT)
    problem = result[0] if result else "no answer"
    if isinstance(problem, bytes):
        if hashlib.sha256(problem).hexdigest() == sha256:
            return problem
        problem = "the server returned a different file"
    raise Unreachable(
        f"tiny_shakespeare could not be downloaded from {url} ({problem}): get the file by other means and pass it as "
        "data.path=FILE, which gives the same data"
    )
