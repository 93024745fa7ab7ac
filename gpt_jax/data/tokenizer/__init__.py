"""Tokenizers: bytes, characters, byte-level BPE, Hugging Face `tokenizer.json`, tiktoken rank files.

text ─▶ encode ─▶ ids in [0, V) ─▶ decode ─▶ text
"""

from collections.abc import Iterable
from typing import Any

from etils import epath

from gpt_jax import config as configs
from gpt_jax.config.errors import MissingFile, UserError
from gpt_jax.config.foreign import decoded, parse_json
from gpt_jax.data.tokenizer.base import END_OF_TEXT, MANIFEST, PieceTokenizer, read_file
from gpt_jax.data.tokenizer.bpe import ENCODINGS, RANKS, BpeTokenizer
from gpt_jax.data.tokenizer.byte import ByteTokenizer
from gpt_jax.data.tokenizer.character import CharacterTokenizer
from gpt_jax.data.tokenizer.chunks import chunks, read_chunks
from gpt_jax.data.tokenizer.huggingface import TOKENIZER_JSON, HuggingFaceTokenizer, Roles
from gpt_jax.data.tokenizer.interface import AllowedSpecial, StreamDecoder, Tokenizer
from gpt_jax.data.tokenizer.patterns import PATTERNS
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
    """Returns the tokenizer that `config` describes, trained on `texts` if it is of a kind that learns.

    Raises:
      UserError: the tokenizer cannot be trained on `texts`, or see `load_tokenizer`.
      TypeError: `config` is of an unknown type.
    """
    match config:
        case configs.Bytes():
            return ByteTokenizer()
        case configs.Characters():
            return CharacterTokenizer.train(texts)
        case configs.Bpe(vocab_size, split):
            return BpeTokenizer.train(texts, vocab_size, split, (END_OF_TEXT,))
        case configs.TokenizerFile(path):
            return load_tokenizer(path)
    raise TypeError(f"{type(config).__name__} is not a tokenizer configuration")


def load_tokenizer(path: epath.PathLike, encoding: str | None = None) -> Tokenizer:
    """Loads the tokenizer at `path`, which is one of

    - a folder that a tokenizer's `save` wrote; its content is checked against the hash stored in it;
    - a `tokenizer.json`, or a folder with one, such as a published model's with its chat template;
    - a tiktoken rank file. Such a file holds neither the split pattern nor the special tokens, so `encoding` names an
      entry of `ENCODINGS`; it may be left out if it is the name of the file (`cl100k_base.tiktoken`).

    Raises:
      MissingFile: there is nothing at `path`.
      UserError: the file or folder is damaged, or holds no tokenizer.
    """
    path = epath.Path(path)
    if not path.exists():
        raise MissingFile(f"there is no tokenizer at {path}: give a folder or file that exists")
    if path.is_dir():
        if (path / MANIFEST).exists():
            return _load_saved(path)
        if (found := read_pretrained(path)) is not None:
            return found
        raise UserError(f"the folder {path} holds no tokenizer: give one with {MANIFEST} or {TOKENIZER_JSON}")
    if path.name == MANIFEST:
        return _load_saved(path.parent)
    if path.suffix == ".json":
        return HuggingFaceTokenizer(decoded(read_file(path), path), str(path))
    if path.suffix != ".tiktoken" and encoding is None:
        raise UserError(f"{path} is not a tokenizer: give a folder, a tokenizer.json or a .tiktoken file")
    name = path.stem if encoding is None else encoding
    if name not in ENCODINGS:
        raise UserError(f"{name!r} is not a known encoding for the rank file {path}: name one of {sorted(ENCODINGS)}")
    pattern, special_tokens = ENCODINGS[name]
    return BpeTokenizer.from_ranks(read_file(path), pattern, special_tokens, str(path))


def _load_saved(folder: epath.Path) -> Tokenizer:
    manifest_file = folder / MANIFEST
    try:
        manifest: dict[str, Any] = parse_json(decoded(read_file(manifest_file), manifest_file), manifest_file)
        kind, expected = manifest["kind"], manifest["hash"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{manifest_file} is damaged ({error}): save the tokenizer again") from None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UserError(f"{manifest_file} has the unknown kind {kind!r}: it must be one of {sorted(_KINDS)}")
    files = {name: read_file(folder / name) for name in (RANKS, TOKENIZER_JSON) if (folder / name).exists()}
    try:
        tokenizer = _KINDS[kind]._load(manifest, files)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"the tokenizer in {folder} is damaged ({error}): save it again") from None
    if tokenizer.content_hash() != expected:
        raise UserError(f"the tokenizer in {folder} is damaged (its content does not match its hash): save it again")
    return tokenizer
