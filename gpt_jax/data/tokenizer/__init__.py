"""Tokenizers: bytes, characters, byte-level BPE, Hugging Face `tokenizer.json`, tiktoken rank files.

text ─▶ encode ─▶ ids in [0, V) ─▶ decode ─▶ text
"""

import json
from collections.abc import Iterable
from typing import Any

from etils import epath

from gpt_jax import config as configs
from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.data.tokenizer.base import END_OF_TEXT, MANIFEST, AllowedSpecial, PieceTokenizer, StreamDecoder, Tokenizer
from gpt_jax.data.tokenizer.bpe import ENCODINGS, PATTERNS, RANKS, BpeTokenizer
from gpt_jax.data.tokenizer.byte import ByteTokenizer
from gpt_jax.data.tokenizer.character import CharacterTokenizer
from gpt_jax.data.tokenizer.chunks import chunks, read_chunks
from gpt_jax.data.tokenizer.huggingface import TOKENIZER_JSON, HuggingFaceTokenizer, Roles
from gpt_jax.data.tokenizer.pretrained import as_hugging_face, read_pretrained, write_pretrained
from gpt_jax.data.tokenizer.show import describe

__all__ = [
    "ENCODINGS",
    "END_OF_TEXT",
    "PATTERNS",
    "AllowedSpecial",
    "BpeTokenizer",
    "ByteTokenizer",
    "CharacterTokenizer",
    "HuggingFaceTokenizer",
    "Roles",
    "StreamDecoder",
    "Tokenizer",
    "as_hugging_face",
    "chunks",
    "describe",
    "load_tokenizer",
    "make_tokenizer",
    "read_chunks",
    "read_pretrained",
    "write_pretrained",
]

_KINDS: dict[str, type[PieceTokenizer]] = {
    tokenizer.kind: tokenizer for tokenizer in (ByteTokenizer, CharacterTokenizer, BpeTokenizer, HuggingFaceTokenizer)
}


def make_tokenizer(config: configs.TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that `config` describes; `texts`, the training text, is read only where it is learned from."""
    match config:
        case configs.Bytes():
            return ByteTokenizer()
        case configs.Characters():
            return CharacterTokenizer.train(texts)
        case configs.Bpe(vocab_size, split):
            return BpeTokenizer.train(texts, vocab_size, split, (END_OF_TEXT,))
        case configs.TokenizerFile(path):
            return load_tokenizer(path)
    raise TypeError(f"{type(config).__name__} is no tokenizer configuration.")


def load_tokenizer(path: epath.PathLike, encoding: str | None = None) -> Tokenizer:
    """The tokenizer at `path`, which is one of

    - a folder that a tokenizer's `save` wrote (its content is checked against the hash in it);
    - a `tokenizer.json`, or a folder that holds one (a published model's, with its chat template);
    - a tiktoken rank file. It names neither split pattern nor special tokens: `encoding`, a name in `ENCODINGS`, does,
      and may be left out where the file is called so (`cl100k_base.tiktoken`).

    Raises FileNotFoundError where there is nothing, ValueError for a damaged or unknown file.
    """
    path = epath.Path(path)
    if not path.exists():
        raise MissingFile(f"There is no tokenizer at {path}; give a folder or file that exists.")
    if path.is_dir():
        if (path / MANIFEST).exists():
            return _load_saved(path)
        if (found := read_pretrained(path)) is not None:
            return found
        raise UserError(f"The folder {path} holds no tokenizer: neither {MANIFEST} nor {TOKENIZER_JSON} is in it.")
    if path.name == MANIFEST:
        return _load_saved(path.parent)
    if path.suffix == ".json":
        return HuggingFaceTokenizer(_read_text(path), str(path))
    if path.suffix != ".tiktoken" and encoding is None:
        raise UserError(f"{path} is no tokenizer; give a folder, a tokenizer.json or a .tiktoken file.")
    name = path.stem if encoding is None else encoding
    if name not in ENCODINGS:
        raise UserError(f"Name the encoding of the rank file {path}, one of {sorted(ENCODINGS)}, not {name!r}.")
    pattern, special_tokens = ENCODINGS[name]
    return BpeTokenizer.from_ranks(path.read_bytes(), pattern, special_tokens, str(path))


def _load_saved(folder: epath.Path) -> Tokenizer:
    manifest_file = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(_read_text(manifest_file))
        kind, expected = manifest["kind"], manifest["hash"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{manifest_file} is damaged ({error}); save the tokenizer again.") from None
    if kind not in _KINDS:
        raise UserError(f"{manifest_file} is of the kind {kind!r}, which is none of {sorted(_KINDS)}.")
    files = {name: (folder / name).read_bytes() for name in (RANKS, TOKENIZER_JSON) if (folder / name).exists()}
    try:
        tokenizer = _KINDS[kind]._load(manifest, files)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"The tokenizer in {folder} is damaged ({error}); save it again.") from None
    if tokenizer.content_hash() != expected:
        raise UserError(f"The tokenizer in {folder} is damaged: its content no longer has the hash it was saved with.")
    return tokenizer


def _read_text(path: epath.Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}).") from None
