"""Characters as tokens: the vocabulary is the set of characters in a text."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpt_jax.config.errors import UserError
from gpt_jax.data.tokenizer.base import PieceTokenizer, check_text, special_ids


class CharacterTokenizer(PieceTokenizer):
    """Ids 0, 1, … are the given characters in the order of code points, followed by special tokens (none by default).

    Encoding a character outside the vocabulary raises UserError, and so does an empty vocabulary.
    """

    kind = "characters"

    def __init__(self, characters: Iterable[str], special_tokens: Iterable[str] = ()):
        self.characters = "".join(sorted(set(characters)))
        check_text(self.characters)
        if not self.characters:
            raise UserError("a character vocabulary needs at least one character: give a text that is not empty")
        self._codes = _code_points(self.characters)
        pieces = {index: character.encode() for index, character in enumerate(self.characters)}
        super().__init__(pieces, special_ids(special_tokens, len(pieces)))

    @classmethod
    def train(cls, texts: Iterable[str], special_tokens: Iterable[str] = ()) -> "CharacterTokenizer":
        """Returns the tokenizer of all characters that occur in `texts`."""
        if isinstance(texts, str):
            raise TypeError("train takes an iterable of texts: put a single text in a list")
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        return cls(characters, special_tokens)

    def _ordinary_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [self._ordinary(text) for text in texts]

    def _ordinary(self, text: str) -> np.ndarray:
        codes = _code_points(text)
        ids = np.searchsorted(self._codes, codes)
        unknown = self._codes[np.minimum(ids, len(self._codes) - 1)] != codes
        if unknown.any():
            position = int(unknown.argmax())
            raise UserError(
                f"character {text[position]!r} (U+{ord(text[position]):04X}) at position {position} is not among the "
                f"{len(self.characters)} characters of this vocabulary: train it on text that has it, or use bytes"
            )
        return ids.astype(np.int32)

    def manifest(self) -> dict[str, Any]:
        return {"characters": self.characters, "special_tokens": list(self.special_tokens)}

    @classmethod
    def _load(cls, manifest: dict[str, Any], files: dict[str, bytes]) -> "CharacterTokenizer":
        return cls(manifest["characters"], manifest["special_tokens"])


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")
