"""Bytes as tokens: no training, no text it cannot encode, and V = 256 + the number of special tokens."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpt_jax.data.tokenizer.base import END_OF_TEXT, PieceTokenizer, special_ids


class ByteTokenizer(PieceTokenizer):
    """Ids 0–255 are the UTF-8 bytes of the text; special tokens follow from 256 (by default one, so V = 257)."""

    kind = "bytes"

    def __init__(self, special_tokens: Iterable[str] = (END_OF_TEXT,)):
        super().__init__({value: bytes([value]) for value in range(256)}, special_ids(special_tokens, 256))

    def _ordinary_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) for text in texts]

    def manifest(self) -> dict[str, Any]:
        return {"special_tokens": list(self.special_tokens)}

    @classmethod
    def _load(cls, manifest: dict[str, Any], files: dict[str, bytes]) -> "ByteTokenizer":
        return cls(manifest["special_tokens"])
