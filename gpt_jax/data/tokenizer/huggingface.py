"""Any Hugging Face `tokenizer.json`, run by the `tokenizers` library."""

import json
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import tokenizers

from gpt_jax.data.tokenizer.base import ByteStream, PieceTokenizer, StreamDecoder, TokenIds, as_ids
from gpt_jax.data.tokenizer.bpe import LETTER_BYTES

TOKENIZER_JSON = "tokenizer.json"

# What a vocabulary may lose, each shown by a text that does not come back from decode(encode(text)).
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


class HuggingFaceTokenizer(PieceTokenizer):
    """A `tokenizer.json`: its own normaliser, splitting, model and decoder; no template adds special tokens.

    Truncation and padding stored in the file are ignored. `losses` names what the vocabulary does not give back; where
    there is any, loading warns, naming the normalisers at fault.

    Args:
        definition: the text of the file.
        name: what to call the file in messages.
    """

    kind = "huggingface"

    def __init__(self, definition: str, name: str = TOKENIZER_JSON):
        try:
            self._definition = json.loads(definition)
            self._decoder = tokenizers.Tokenizer.from_str(definition)
            added = {token["content"]: token for token in self._definition["added_tokens"]}
        # The library raises bare Exception.
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{name} is not a tokenizer.json that can be read ({reason}).") from None
        self._encoders: dict[frozenset[str], tokenizers.Tokenizer] = {}
        vocab = self._decoder.get_vocab(with_added_tokens=True)
        if not vocab:
            raise ValueError(f"{name} has an empty vocabulary; give a trained tokenizer.json.")
        special = {content: token["id"] for content, token in added.items() if token["special"]}
        self._bytewise = (self._definition["decoder"] or {"type": None})["type"] == "ByteLevel"
        pieces = {
            index: _piece(token) if self._bytewise and token not in added else token.encode()
            for token, index in vocab.items()
        }
        super().__init__(pieces, special)
        model = self._definition["model"]
        unknown = model["unk_token"] if "unk_token" in model else None
        self._unknown = None if unknown is None else self._decoder.token_to_id(unknown)
        self.normalisers = sorted(set(_types(self._definition["normalizer"])) & _LOSSY_NORMALISERS)
        self.losses = [what for what, probe in _PROBES.items() if not self._gives_back(probe)]
        if self.losses:
            by = f" (normalised by {', '.join(self.normalisers)})" if self.normalisers else ""
            warnings.warn(f"{name} does not give every text back{by}: it loses {', '.join(self.losses)}.", stacklevel=2)

    def decode(self, ids: TokenIds) -> str:
        if self._bytewise:
            return super().decode(ids)
        return self._decoder.decode(self._check_ids(ids), skip_special_tokens=False)

    def decode_bytes(self, ids: TokenIds) -> bytes:
        return super().decode_bytes(ids) if self._bytewise else self.decode(ids).encode("utf-8")

    def stream(self) -> StreamDecoder:
        return ByteStream(self) if self._bytewise else TextStream(self)

    def _encoder(self, allowed: frozenset[str]) -> tokenizers.Tokenizer:
        """The library's tokenizer that recognises the special tokens `allowed` and takes the others as text."""
        if allowed not in self._encoders:
            model_vocab = self._decoder.get_vocab(with_added_tokens=False)
            added = []
            for token in self._definition["added_tokens"]:
                content = token["content"]
                if token["special"] and content not in allowed:
                    if content in model_vocab:
                        continue
                    # Its place keeps the ids of those after it, under a name of no text: U+10FFFF is no character.
                    content = f"\U0010ffff{token['id']}"
                added.append({**token, "content": content, "special": False})
            encoder = tokenizers.Tokenizer.from_str(json.dumps({**self._definition, "added_tokens": added}))
            encoder.no_truncation()
            encoder.no_padding()
            self._encoders[allowed] = encoder
        return self._encoders[allowed]

    def _encode_with(self, texts: list[str], allowed: frozenset[str]) -> list[np.ndarray]:
        # The library splits, not the base class: only it knows what a special token does to the text beside it.
        encodings = self._encoder(allowed).encode_batch_fast(texts, add_special_tokens=False)
        rows = [np.asarray(encoding.ids, np.int32) for encoding in encodings]
        for name, index in self.special_tokens.items():
            if name in allowed or index == self._unknown:
                continue
            if any(name in text and index in row for row, text in zip(rows, texts, strict=True)):
                raise ValueError(f"This vocabulary cannot write {name!r} as ordinary text; remove it or allow it.")
        return rows

    def _ordinary_batch(self, texts: list[str]) -> list[np.ndarray]:
        return self._encode_with(texts, frozenset())

    def _gives_back(self, probe: str) -> bool:
        return self.decode(self.encode(probe, "none")) == probe

    def manifest(self) -> dict[str, Any]:
        return {}

    def _files(self) -> dict[str, bytes]:
        # One form for the hash, whatever the file's own layout.
        return {TOKENIZER_JSON: json.dumps(self._definition, sort_keys=True, ensure_ascii=False, indent=1).encode()}

    @classmethod
    def _load(cls, manifest: dict[str, Any], files: dict[str, bytes]) -> "HuggingFaceTokenizer":
        return cls(files[TOKENIZER_JSON].decode("utf-8"))


class TextStream:
    """The `StreamDecoder` where a token's text depends on its neighbours: what further ids add to the text."""

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


def _piece(token: str) -> bytes:
    if all(letter in LETTER_BYTES for letter in token):
        return bytes(LETTER_BYTES[letter] for letter in token)
    return token.encode()


def _types(part: Any) -> Iterator[str]:
    """The `type` of a component of the file and of all within it."""
    if isinstance(part, dict):
        if isinstance(part.get("type"), str):
            yield part["type"]
        for value in part.values():
            yield from _types(value)
    elif isinstance(part, list):
        for value in part:
            yield from _types(value)
