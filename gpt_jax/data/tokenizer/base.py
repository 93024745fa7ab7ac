"""What every tokenizer is: text to ids and back, special tokens, a folder on disk, a hash of its content."""

import codecs
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from etils import epath

from gpt_jax.config.errors import UserError
from gpt_jax.data.tokenizer.chat import Message

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
MANIFEST = "gpt_jax_tokenizer.json"

# Integers, or an array of them, whose elements are of the array library's own types.
TokenIds = Iterable[Any]
AllowedSpecial = Literal["all", "none", "none_raise"] | Collection[str]


@runtime_checkable
class StreamDecoder(Protocol):
    """Text of ids that arrive one by one; the pieces joined are `decode` of all ids."""

    def push(self, ids: int | np.integer | TokenIds) -> str:
        """The text that `ids` complete; the bytes of an unfinished character are held back."""

    def flush(self) -> str:
        """The text of what is still held back, an unfinished character as U+FFFD."""


@runtime_checkable
class Tokenizer(Protocol):
    """Text ↔ ids in [0, V). `allowed_special` says which special tokens are recognised in the text:

    - "none_raise" (default): a special token's text in the input raises ValueError;
    - "none": it is encoded as ordinary text;
    - "all", or a collection of names: these become their one id, every other one is ordinary text.
    """

    kind: ClassVar[str]
    special_tokens: dict[str, int]

    @property
    def vocab_size(self) -> int:
        """V: one more than the largest id."""

    @property
    def end_of_text(self) -> int | None:
        """The id that ends a document, or None where the vocabulary has no such token."""

    @property
    def prefix(self) -> list[int]:
        """What a text to continue begins with, such as Llama's `<s>`; mostly nothing. `encode` doesn't add it."""

    @property
    def stop(self) -> list[int]:
        """The ids after which there is nothing more to sample: of the end of a text, and of an assistant's turn."""

    @property
    def chats(self) -> bool:
        """Whether there is a template for conversations."""

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation, up to where the assistant is to speak.

        Raises:
          ValueError: there is no template for conversations, or it refuses these messages.
        """

    def encode(self, text: str, allowed_special: AllowedSpecial = "none_raise") -> list[int]:
        """The ids of `text`."""

    def encode_batch(self, texts: Sequence[str], allowed_special: AllowedSpecial = "none_raise") -> list[np.ndarray]:
        """The ids of each text, int32. Documents are data, not prompts: encode them with "none"."""

    def decode(self, ids: TokenIds) -> str:
        """The text of `ids`, with U+FFFD for bytes that are not UTF-8."""

    def decode_bytes(self, ids: TokenIds) -> bytes:
        """The exact bytes of `ids`."""

    def stream(self) -> StreamDecoder:
        """A fresh incremental decoder, for printing ids as they are sampled."""

    def save(self, folder: epath.PathLike) -> None:
        """Writes what `load_tokenizer(folder)` needs."""

    def content_hash(self) -> str:
        """SHA-256, in hex, of everything that decides the ids."""

    def manifest(self) -> dict[str, Any]:
        """What the saved folder says about the tokenizer beside its kind and its hash, as JSON values."""


class PieceTokenizer:
    """A tokenizer whose ids each stand for fixed bytes. A kind supplies `_ordinary_batch`, `manifest`, `_files`
    and `_load`, which reverses those two.

    An id in [0, V) that the vocabulary leaves unused (rank files have such gaps) decodes to U+FFFD, so that an
    untrained model's samples can be shown.
    """

    kind: ClassVar[str]

    def __init__(self, pieces: Mapping[int, bytes], special_tokens: Mapping[str, int]):
        self.special_tokens = dict(special_tokens)
        known = {**pieces, **{index: name.encode() for name, index in special_tokens.items()}}
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

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        raise UserError("this tokenizer has no chat template: the model was not trained on conversations")

    def encode(self, text: str, allowed_special: AllowedSpecial = "none_raise") -> list[int]:
        return self.encode_batch([text], allowed_special)[0].tolist()

    def encode_batch(self, texts: Sequence[str], allowed_special: AllowedSpecial = "none_raise") -> list[np.ndarray]:
        if isinstance(texts, str):
            raise TypeError("encode_batch takes a list of texts; use encode for a single one.")
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
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._files().items():
            (folder / name).write_bytes(content)
        manifest = {"kind": self.kind, "hash": self.content_hash(), **self.manifest()}
        # Last, so that a folder with a manifest is a whole one.
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
        """The special tokens to recognise; raises for those of "none_raise" and for names that there are not."""
        if isinstance(allowed_special, str):
            if allowed_special not in ("all", "none", "none_raise"):
                raise UserError(
                    f"allowed_special is 'all', 'none', 'none_raise' or a set of names, not {allowed_special!r}."
                )
            if allowed_special == "none_raise":
                for name in self.special_tokens:
                    if any(name in text for text in texts):
                        raise UserError(
                            f"The text contains the special token {name!r}; pass allowed_special='all' to encode it as "
                            "special, or 'none' to encode it as ordinary text."
                        )
            return frozenset(self.special_tokens) if allowed_special == "all" else frozenset()
        allowed = frozenset(allowed_special)
        if unknown := sorted(allowed - self.special_tokens.keys()):
            raise UserError(
                f"{unknown[0]!r} is not a special token of this tokenizer, which has {sorted(self.special_tokens)}."
            )
        return allowed

    def _encode_with(self, texts: list[str], allowed: frozenset[str]) -> list[np.ndarray]:
        # Longest first, since an alternation takes the first branch that matches.
        names = sorted(allowed, key=len, reverse=True)
        splitter = re.compile("(" + "|".join(map(re.escape, names)) + ")")
        # Splitting on one group alternates: ordinary text at even places, special tokens at odd ones.
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
            raise UserError(f"decode takes one row of integer ids, not {array.dtype} of shape {array.shape}.")
        for extreme in (array.min(), array.max()):
            if not 0 <= extreme < self.vocab_size:
                raise UserError(
                    f"Token id {extreme} is outside the vocabulary, whose ids are 0 to {self.vocab_size - 1}."
                )
        return array.tolist()


class ByteStream:
    """The `StreamDecoder` of a tokenizer whose ids stand for fixed bytes."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: int | np.integer | TokenIds) -> str:
        return self._utf8.decode(self._tokenizer.decode_bytes(as_ids(ids)))

    def flush(self) -> str:
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def as_ids(ids: int | np.integer | TokenIds) -> list[int]:
    """One id or several (also array scalars) as a list."""
    array = np.asarray(list(ids) if isinstance(ids, Iterable) and not hasattr(ids, "__array__") else ids)
    return array.reshape(-1).tolist()


def check_text(text: str) -> None:
    """Raises unless `text` is a string that UTF-8 can hold."""
    if not isinstance(text, str):
        raise TypeError(f"A tokenizer encodes strings, not {type(text).__name__}; decode bytes to text first.")
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"The text has a lone surrogate, U+{ord(text[error.start]):04X}, at position {error.start}, which UTF-8 "
            "cannot hold; remove it, for example with text.encode(errors='replace').decode()."
        ) from None


def special_ids(names: Iterable[str], first: int) -> dict[str, int]:
    """Special tokens numbered upwards from `first`, in the order given."""
    names = [names] if isinstance(names, str) else list(names)
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"Special tokens are non-empty and differ from one another, unlike {names}.")
    return {name: first + place for place, name in enumerate(names)}
