"""Hugging Face's `tokenizer.json`, run by the `tokenizers` library."""

import functools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import tokenizers

from gpt_jax.config.errors import UserError
from gpt_jax.config.printable import printable
from gpt_jax.data.tokenizer.base import ByteStream, PieceTokenizer, as_ids
from gpt_jax.data.tokenizer.chat import Message, render_chat
from gpt_jax.data.tokenizer.definition import parse_definition
from gpt_jax.data.tokenizer.interface import StreamDecoder, TokenIds
from gpt_jax.data.tokenizer.merging import Merges, merges_of, piece_bytes

TOKENIZER_JSON = "tokenizer.json"
T = TypeVar("T")

# What a vocabulary may lose → a text that decode(encode(text)) changes if it does.
_PROBES = {
    "capital letters": "Here I am",
    "spaces at the ends": " am ",
    "runs of spaces": "a  a",
    "line breaks and tabs": "a\n\ta",
    "accents": "é",
    "composed forms of letters": "e\u0301",
    "compatibility forms of letters": "ﬁ",
    "characters outside its vocabulary": "안 😉",
}
_LOSSY_NORMALISERS = {
    *("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled"),
    *("Lowercase", "StripAccents", "BertNormalizer", "Strip", "Replace"),
}


@dataclass(frozen=True)
class Roles:
    """The roles of tokens, from the files of a published model beside its `tokenizer.json`.

    Attributes:
      tokens: role (`bos_token`, `eos_token`, `pad_token`, …) → text of the token.
      stop: more ids that end generation.
      chat_template: the Jinja template that turns a conversation into text.
    """

    tokens: Mapping[str, str] = field(default_factory=dict)
    stop: tuple[int, ...] = ()
    chat_template: str | None = None


NO_ROLES = Roles()


class HuggingFaceTokenizer(PieceTokenizer):
    """A `tokenizer.json` with its own normaliser, splitting, model and decoder; `encode` adds no special tokens.

    Truncation and padding settings in the file are ignored. `losses` lists what decode(encode(text)) does not preserve;
    if there is any loss, loading warns and names the normalisers that cause it.

    Args:
      definition: the text of the file.
      name: the name of the file in messages.
      roles: the roles of its tokens.

    Raises:
      UserError: the file is damaged or its vocabulary is empty.
    """

    kind = "huggingface"

    def __init__(self, definition: str, name: str = TOKENIZER_JSON, roles: Roles = NO_ROLES):
        self._name = name
        self._definition = parse_definition(definition, name)
        self._decoder = self._library(self._definition["added_tokens"])
        added = {token["content"]: token for token in self._definition["added_tokens"]}
        self._encoders: dict[frozenset[str], tokenizers.Tokenizer] = {}
        vocab = self._decoder.get_vocab(with_added_tokens=True)
        if not vocab:
            raise UserError(f"{name} has an empty vocabulary: give a trained tokenizer.json")
        if wrong := next((token for content, token in added.items() if vocab.get(content) != token["id"]), None):
            raise UserError(
                f"{name} is not a valid tokenizer.json (it says that {wrong['content']!r} has the id {wrong['id']}, and"
                f" its encoder gives it {vocab.get(wrong['content'])}): download it again"
            )
        special = {content: token["id"] for content, token in added.items() if token["special"]}
        self._bytewise = (self._definition["decoder"] or {}).get("type") == "ByteLevel"
        pieces = {
            index: piece_bytes(token) if self._bytewise and token not in added else token.encode()
            for token, index in vocab.items()
        }
        super().__init__(pieces, special)
        check_roles(roles)
        stop = tuple(index for index in roles.stop if 0 <= index < self.vocab_size)
        if lost := [index for index in roles.stop if index not in stop]:
            warnings.warn(
                f"{name} has no token {lost[0]}, a stop token by the files beside it: generation will not stop there",
                stacklevel=2,
            )
        known = {role: token for role, token in roles.tokens.items() if token in vocab}
        self.roles = replace(roles, tokens=known, stop=stop)
        model = self._definition["model"]
        unknown = model["unk_token"] if "unk_token" in model else None
        self._unknown = None if unknown is None else self._decoder.token_to_id(unknown)
        self.normalisers = sorted(set(_types(self._definition["normalizer"])) & _LOSSY_NORMALISERS)
        self.losses = [what for what, probe in _PROBES.items() if not self._preserves(probe)]
        if self.losses:
            by = f" (normalised by {', '.join(self.normalisers)})" if self.normalisers else ""
            warnings.warn(f"{name} does not preserve every text{by}: it loses {', '.join(self.losses)}", stacklevel=2)

    @property
    def end_of_text(self) -> int | None:
        named = super().end_of_text
        if named is None and "eos_token" in self.roles.tokens:
            return self._id("eos_token")
        return named

    @functools.cached_property
    def merges(self) -> Merges | None:
        """`BpeTokenizer.merges` by this file's list of merges, as `merges_of`."""
        return merges_of(self._definition, self._bytewise)

    @functools.cached_property
    def prefix(self) -> list[int]:  # type: ignore[override]
        """The ids that the post-processor of the file puts before a text."""
        plain = self._guarded(lambda: self._decoder.encode("a", add_special_tokens=False).ids)
        whole = self._guarded(lambda: self._decoder.encode("a", add_special_tokens=True).ids)
        return next(
            (whole[:start] for start in range(len(whole) - len(plain) + 1) if whole[start:][: len(plain)] == plain), []
        )

    @functools.cached_property
    def stop(self) -> list[int]:  # type: ignore[override]
        """The ids that end a text, and the special token that the chat template puts after the assistant's words."""
        ends = [self._id("eos_token")] if "eos_token" in self.roles.tokens else []
        return sorted({*super().stop, *self.roles.stop, *ends, *self._end_of_turn()})

    def _id(self, role: str) -> int:
        index = self._decoder.token_to_id(self.roles.tokens[role])
        assert index is not None  # __init__ leaves out roles of unknown tokens
        return index

    def _end_of_turn(self) -> list[int]:
        if self.roles.chat_template is None:
            return []
        answer = "the-answer"
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
        try:
            text = render_chat(self.roles.chat_template, turns, self.roles.tokens, add_generation_prompt=False)
        except ValueError:
            return []
        after = self.encode(text.rpartition(answer)[2].lstrip(), "all")[:1] if answer in text else []
        return [index for index in after if index in self.special_tokens.values()]

    @property
    def chats(self) -> bool:
        return self.roles.chat_template is not None

    def chat_text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Returns a conversation by the model's own template, as `transformers` writes it."""
        template = self.roles.chat_template
        if template is None:
            return super().chat_text(messages)
        return render_chat(template, messages, self.roles.tokens, add_generation_prompt=add_generation_prompt)

    def decode(self, ids: TokenIds) -> str:
        if self._bytewise:
            return super().decode(ids)
        known = self._check_ids(ids)
        return self._guarded(lambda: self._decoder.decode(known, skip_special_tokens=False))

    def decode_bytes(self, ids: TokenIds) -> bytes:
        return super().decode_bytes(ids) if self._bytewise else self.decode(ids).encode("utf-8")

    def stream(self) -> StreamDecoder:
        return ByteStream(self) if self._bytewise else TextStream(self)

    def _encoder(self, allowed: frozenset[str]) -> tokenizers.Tokenizer:
        """Returns a tokenizer that recognises the special tokens `allowed` and encodes the others as text."""
        if allowed not in self._encoders:
            model_vocab = self._decoder.get_vocab(with_added_tokens=False)
            added = []
            for token in self._definition["added_tokens"]:
                content = token["content"]
                if token["special"] and content not in allowed:
                    if content in model_vocab:
                        continue
                    # Removing the token would shift the ids after it, so it gets a name that no text contains: U+10FFFF
                    # is not a character.
                    content = f"\U0010ffff{token['id']}"
                added.append({**token, "content": content, "special": False})
            self._encoders[allowed] = self._library(added)
        return self._encoders[allowed]

    def _library(self, added_tokens: list[dict[str, Any]]) -> tokenizers.Tokenizer:
        whole = {**self._definition, "added_tokens": added_tokens, "truncation": None, "padding": None}
        return self._guarded(lambda: tokenizers.Tokenizer.from_str(json.dumps(whole)))

    def _guarded(self, call: Callable[[], T]) -> T:
        """Returns `call()`, which runs the library. It raises plain Exception, and panics are no Exception."""
        try:
            return call()
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:
            reason = printable(" ".join(str(error).split())[:300])
            raise UserError(f"{self._name} is not a valid tokenizer.json ({reason}): download it again") from None

    def _encode_with(self, texts: list[str], allowed: frozenset[str]) -> list[np.ndarray]:
        # The library splits, not the base class, because a special token may change how the text beside it is encoded.
        encoder = self._encoder(allowed)
        encodings = self._guarded(lambda: encoder.encode_batch_fast(texts, add_special_tokens=False))
        rows = [np.asarray(encoding.ids, np.int32) for encoding in encodings]
        for name, index in self.special_tokens.items():
            if name in allowed or index == self._unknown:
                continue
            if any(name in text and index in row for row, text in zip(rows, texts, strict=True)):
                raise UserError(
                    f"this vocabulary cannot encode {name!r} as ordinary text: remove it or allow it as a special token"
                )
        return rows

    def _ordinary_batch(self, texts: list[str]) -> list[np.ndarray]:
        return self._encode_with(texts, frozenset())

    def _preserves(self, probe: str) -> bool:
        return self.decode(self.encode(probe, "none")) == probe

    def manifest(self) -> dict[str, Any]:
        return {} if self.roles == NO_ROLES else {"roles": asdict(self.roles) | {"stop": [*self.roles.stop]}}

    def _files(self) -> dict[str, bytes]:
        # Written in one form, so that the hash does not depend on the layout of the file.
        return {TOKENIZER_JSON: json.dumps(self._definition, sort_keys=True, ensure_ascii=False, indent=1).encode()}

    @classmethod
    def _load(cls, manifest: dict[str, Any], files: dict[str, bytes]) -> "HuggingFaceTokenizer":
        roles = NO_ROLES
        if "roles" in manifest:
            saved = manifest["roles"]
            roles = Roles(saved["tokens"], tuple(saved["stop"]), saved["chat_template"])
            check_roles(roles)
        return cls(files[TOKENIZER_JSON].decode("utf-8"), roles=roles)


def check_roles(roles: Roles) -> None:
    """Raises UserError if a part of roles that were read from files is of the wrong kind."""
    if not isinstance(roles.tokens, Mapping) or not all(isinstance(text, str) for text in roles.tokens.values()):
        raise UserError("the texts of special tokens must be strings")
    if not all(type(index) is int for index in roles.stop):
        raise UserError("the ids of end-of-text tokens must be integers")
    if not isinstance(roles.chat_template, str | None):
        raise UserError("the chat template must be a string")


class TextStream:
    """The `StreamDecoder` of a tokenizer in which the text of a token depends on its neighbours.

    Each call decodes all ids so far and returns what the new ones add.
    """

    def __init__(self, tokenizer: HuggingFaceTokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = ""

    def push(self, ids: int | np.integer | TokenIds) -> str:
        self._ids += as_ids(ids)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd") or not text.startswith(self._shown):
            return ""
        new = text[len(self._shown) :]
        self._shown = text
        return new

    def flush(self) -> str:
        new = self._tokenizer.decode(self._ids)[len(self._shown) :]
        self._ids, self._shown = [], ""
        return new


def _types(part: Any) -> Iterator[str]:
    """Yields the `type` of a component of the file and of all components within it."""
    if isinstance(part, dict):
        if isinstance(part.get("type"), str):
            yield part["type"]
        for value in part.values():
            yield from _types(value)
    elif isinstance(part, list):
        for value in part:
            yield from _types(value)
