"""The common part of all tokenizers: special tokens, checks, saving, the hash of the content."""

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from etils import epath

from gpt_jax.config.disk import writing
from gpt_jax.config.errors import UserError
from gpt_jax.config.foreign import read_bytes
from gpt_jax.data.tokenizer.chat import Message
from gpt_jax.data.tokenizer.interface import AllowedSpecial, StreamDecoder, TokenIds, Tokenizer

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
MANIFEST = "gpt_jax_tokenizer.json"
MOST_IDS = 1 << 22  # the largest vocabularies in use have 260,000


class PieceTokenizer:
    """A tokenizer in which each id stands for fixed bytes.

    Subclasses implement `_ordinary_batch`, which encodes texts without special tokens; `manifest` and `_files`, which
    return the settings and the files to save; and `_load`, which restores a tokenizer from them.

    Raises UserError if an id is not an integer in [0, MOST_IDS).

    An unused id in [0, V) (rank files have gaps) decodes to U+FFFD, so that samples of an untrained model can be shown.
    """

    kind: ClassVar[str]

    def __init__(self, pieces: Mapping[int, bytes], special_tokens: Mapping[str, int]):
        self.special_tokens = dict(special_tokens)
        known = {**pieces, **{index: name.encode() for name, index in special_tokens.items()}}
        if not all(type(index) is int and 0 <= index < MOST_IDS for index in known):
            bad = next(index for index in known if type(index) is not int or not 0 <= index < MOST_IDS)
            raise UserError(f"{str(bad)[:40]} is not a token id: ids are integers from 0 to {MOST_IDS - 1}")
        self._pieces = [known.get(index, "\ufffd".encode()) for index in range(max(known) + 1)]

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    @property
    def end_of_text(self) -> int | None:
        return next((self.special_tokens[name] for name in END_OF_TEXT_NAMES if name in self.special_tokens), None)

    @property
    def prefix(self) -> list[int]:
        return []

    @property
    def stop(self) -> list[int]:
        return [] if self.end_of_text is None else [self.end_of_text]

    @property
    def chats(self) -> bool:
        return False

    def chat_text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        raise UserError("this tokenizer has no chat template: use a model that was trained on conversations")

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        return self.encode(self.chat_text(messages, add_generation_prompt=add_generation_prompt), "all")

    def encode(self, text: str, allowed_special: AllowedSpecial = "none_raise") -> list[int]:
        return self.encode_batch([text], allowed_special)[0].tolist()

    def encode_batch(self, texts: Sequence[str], allowed_special: AllowedSpecial = "none_raise") -> list[np.ndarray]:
        if isinstance(texts, str):
            raise TypeError("encode_batch takes a list of texts: use encode for a single one")
        texts = list(texts)
        for text in texts:
            check_text(text)
        allowed = self._resolve(texts, allowed_special)
        return self._encode_with(texts, allowed) if allowed else self._ordinary_batch(texts)

    def decode(self, ids: TokenIds) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: TokenIds) -> bytes:
        pieces = self._pieces
        return b"".join([pieces[index] for index in self._check_ids(ids)])

    def stream(self) -> StreamDecoder:
        return ByteStream(self)

    def save(self, folder: epath.PathLike) -> None:
        folder = epath.Path(folder)
        manifest = {"kind": self.kind, "hash": self.content_hash(), **self.manifest()}
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in self._files().items():
                (folder / name).write_bytes(content)
            # Written last, so that a folder with a manifest is complete.
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def content_hash(self) -> str:
        manifest = json.dumps({"kind": self.kind, **self.manifest()}, sort_keys=True)
        digest = hashlib.sha256(manifest.encode())
        for name, content in sorted(self._files().items()):
            digest.update(f"\n{name} {len(content)}\n".encode() + content)
        return digest.hexdigest()

    def _ordinary_batch(self, texts: list[str]) -> list[np.ndarray]:
        raise NotImplementedError

    def manifest(self) -> dict[str, Any]:
        raise NotImplementedError

    def _files(self) -> dict[str, bytes]:
        return {}

    @classmethod
    def _load(cls, manifest: dict[str, Any], files: dict[str, bytes]) -> "PieceTokenizer":
        raise NotImplementedError

    def _resolve(self, texts: list[str], allowed_special: AllowedSpecial) -> frozenset[str]:
        """Returns the special tokens to recognise in `texts`.

        Raises:
          UserError: a text contains a special token under "none_raise", or a name is not a special token.
        """
        if isinstance(allowed_special, str):
            if allowed_special not in ("all", "none", "none_raise"):
                raise UserError(
                    f"allowed_special must be 'all', 'none', 'none_raise' or a set of names, not {allowed_special!r}"
                )
            if allowed_special == "none_raise":
                for name in self.special_tokens:
                    if any(name in text for text in texts):
                        raise UserError(
                            f"the text contains the special token {name!r}: pass allowed_special='all' to encode it as "
                            "special, or 'none' to encode it as ordinary text"
                        )
            return frozenset(self.special_tokens) if allowed_special == "all" else frozenset()
        allowed = frozenset(allowed_special)
        if unknown := sorted(allowed - self.special_tokens.keys()):
            raise UserError(
                f"{unknown[0]!r} is not a special token of this tokenizer: it has {sorted(self.special_tokens)}"
            )
        return allowed

    def _encode_with(self, texts: list[str], allowed: frozenset[str]) -> list[np.ndarray]:
        # Longest first, because a regular expression takes the first alternative that matches.
        names = sorted(allowed, key=len, reverse=True)
        splitter = re.compile("(" + "|".join(map(re.escape, names)) + ")")
        # Splitting on one group gives ordinary text at even places and special tokens at odd ones.
        split = [splitter.split(text) for text in texts]
        ordinary = iter(self._ordinary_batch([part for parts in split for part in parts[::2]]))
        return [
            np.concatenate(
                [
                    np.asarray([self.special_tokens[part]], np.int32) if place % 2 else next(ordinary)
                    for place, part in enumerate(parts)
                ]
            )
            for parts in split
        ]

    def _check_ids(self, ids: TokenIds) -> list[int]:
        array = np.asarray(ids if hasattr(ids, "__array__") else list(ids))
        if array.size == 0:
            return []
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise UserError(f"decode takes one row of integer ids, not {array.dtype} of shape {array.shape}")
        for extreme in (array.min(), array.max()):
            if not 0 <= extreme < self.vocab_size:
                raise UserError(
                    f"token id {extreme} is outside the vocabulary, whose ids are 0 to {self.vocab_size - 1}"
                )
        return array.tolist()


class ByteStream:
    """The `StreamDecoder` of a tokenizer in which each id stands for fixed bytes."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: int | np.integer | TokenIds) -> str:
        return self._utf8.decode(self._tokenizer.decode_bytes(as_ids(ids)))

    def flush(self) -> str:
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def read_file(path: epath.PathLike) -> bytes:
    """The content of a file, which may be in a bucket.

    Raises:
      MissingFile: there is no such file.
      UserError: it is a folder, a pipe or a device, or too large to be a tokenizer's file.
    """
    return epath.Path(path).read_bytes() if "://" in str(path) else read_bytes(path)


def as_ids(ids: int | np.integer | TokenIds) -> list[int]:
    """Returns one id (an integer or array scalar) or several as a list."""
    array = np.asarray(list(ids) if isinstance(ids, Iterable) and not hasattr(ids, "__array__") else ids)
    return array.reshape(-1).tolist()


def check_text(text: str) -> None:
    """Checks that `text` can be encoded.

    Raises:
      TypeError: it is not a string.
      UserError: it has a lone surrogate, which UTF-8 cannot represent.
    """
    if not isinstance(text, str):
        raise TypeError(f"a tokenizer encodes strings, not {type(text).__name__}: decode bytes to text first")
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at position {error.start}, which UTF-8 "
            "cannot represent: remove it, for example with text.encode(errors='replace').decode()"
        ) from None


def special_ids(names: Iterable[str], first: int) -> dict[str, int]:
    """Numbers special tokens upwards from `first`, in the order given.

    Raises:
      UserError: a name is empty or repeated.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise UserError(f"special tokens must be non-empty and distinct, not {names}")
    return {name: first + place for place, name in enumerate(names)}
