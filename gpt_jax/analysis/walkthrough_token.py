"""Tokens as a page shows them: their bytes, how a tokenizer merged them, and a text in which nothing is invisible."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from gpt_jax.data.tokenizer import BpeTokenizer, ByteTokenizer, CharacterTokenizer, HuggingFaceTokenizer, Tokenizer

SIGNS = {"\n": "⏎", "\t": "⇥", "\r": "␍", " ": "␣", "\0": "␀"}


@dataclass(frozen=True)
class Token:
    """One token: `merges` are the steps from single bytes to the whole token, each a list of pieces, and empty
    where nothing is merged; None where the tokenizer does not say.
    """

    id: int
    text: str
    bytes: tuple[int, ...]
    merges: tuple[tuple[str, ...], ...] | None


def tokens_of(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[Token, ...]:
    """The tokens of `ids`. An id that the tokenizer does not know (models may have more rows than it has tokens) has no
    bytes.
    """
    return tuple(_token(tokenizer, index) for index in ids)


def _token(tokenizer: Tokenizer, index: int) -> Token:
    if index >= tokenizer.vocab_size:
        return Token(index, f"#{index}", (), None)
    piece = tokenizer.decode_bytes([index])
    merges: tuple[tuple[str, ...], ...] | None = None
    if isinstance(tokenizer, BpeTokenizer | HuggingFaceTokenizer) and tokenizer.merges is not None:
        merges = tuple(tuple(visible(part) for part in step) for step in tokenizer.merges(index))
    elif isinstance(tokenizer, ByteTokenizer | CharacterTokenizer):
        merges = ()
    return Token(index, visible(piece), tuple(piece), merges)


def visible(piece: bytes) -> str:
    """The text of a token in which spaces, line breaks, controls, marks that turn the direction and bytes that are no
    whole character are signs of their own.
    """
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        return " ".join(f"{value:02X}" for value in piece)
    return "".join(_sign(character) for character in text)


def _sign(character: str) -> str:
    if character in SIGNS:
        return SIGNS[character]
    if character == "\u200d" or "\ufe00" <= character <= "\ufe0f":  # parts of an emoji
        return character
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Zl", "Zp", "Zs")
    return f"U+{ord(character):04X}" if hidden else character
