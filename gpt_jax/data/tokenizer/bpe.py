"""Byte-level byte-pair encoding, trained here or read from a tiktoken rank file.

Sennrich et al. 2016, arXiv:1508.07909; on bytes since GPT-2 (Radford et al. 2019). The `tokenizers` library learns the
merges and `tiktoken` applies them. Ids are numbered as in minbpe: bytes are 0–255 by value, merges follow in the order
in which they were learned, special tokens come last.

Ties: among equally frequent pairs, minbpe merges the one seen first in the text; the library merges the one with the
lowest left token, then the lowest right token, in its own numbering, where printable ASCII comes first. From a text
with ties the two therefore learn different merges, which are equally good.
"""

import base64
import binascii
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tiktoken
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from gpt_jax.config.errors import UserError
from gpt_jax.data.tokenizer.base import PieceTokenizer, check_text, special_ids
from gpt_jax.data.tokenizer.chunks import CHUNK_CHARACTERS, TRAINING_CHARACTERS, chunks
from gpt_jax.data.tokenizer.patterns import PATTERNS

RANKS = "ranks.tiktoken"


class Encoding(NamedTuple):
    """What a rank file does not contain: the name of its split pattern, and its special tokens with their ids."""

    pattern: str
    special_tokens: dict[str, int]


ENCODINGS = {
    "r50k_base": Encoding("gpt2", {"<|endoftext|>": 50256}),
    "p50k_base": Encoding("gpt2", {"<|endoftext|>": 50256}),
    "cl100k_base": Encoding(
        "gpt4",
        {
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": Encoding("gpt4o", {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
}


class BpeTokenizer(PieceTokenizer):
    """Byte-pair encoding. Lower ranks merge first, and the rank of a byte string is its id.

    Args:
      ranks: the rank of each byte string, including all 256 single bytes.
      pattern: a name in `PATTERNS`.
      special_tokens: the id of each special token.

    Raises:
      UserError: an unknown pattern, a missing byte, or ids that are negative or repeated.
    """

    kind = "bpe"

    def __init__(self, ranks: Mapping[bytes, int], pattern: str, special_tokens: Mapping[str, int]):
        if pattern not in PATTERNS:
            raise UserError(f"{pattern!r} is not a split pattern: choose one of {sorted(PATTERNS)}")
        if missing := [value for value in range(256) if bytes([value]) not in ranks]:
            raise UserError(f"the vocabulary lacks the byte 0x{missing[0]:02X}: byte-level BPE needs all 256 bytes")
        ids = sorted([*ranks.values(), *special_tokens.values()])
        if ids[0] < 0 or len(set(ids)) < len(ids):
            raise UserError("the ids of tokens and special tokens must be non-negative and distinct")
        super().__init__({index: piece for piece, index in ranks.items()}, special_tokens)
        self.pattern = pattern
        self._ranks = dict(ranks)
        self._engine = tiktoken.Encoding(
            "gpt_jax", pat_str=PATTERNS[pattern], mergeable_ranks=self._ranks, special_tokens={}
        )

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, pattern: str, special_tokens: Iterable[str] = ()
    ) -> "BpeTokenizer":
        """Learns merges until V = `vocab_size`, which includes the 256 bytes and the special tokens.

        `texts` is read once, in chunks of bounded size, so training needs memory for its distinct words only. If no
        pair is left to merge, the vocabulary stays smaller.

        Raises:
          UserError: an empty text, an unknown pattern, or a `vocab_size` below 256 + the special tokens.
        """
        if isinstance(texts, str):
            raise TypeError("train takes an iterable of texts: put a single text in a list")
        if pattern not in PATTERNS:
            raise UserError(f"{pattern!r} is not a split pattern: choose one of {sorted(PATTERNS)}")
        special = special_ids(special_tokens, 0)
        if vocab_size < 256 + len(special):
            raise UserError(
                f"vocab_size must be at least {256 + len(special)}, for the 256 bytes and {len(special)} special "
                f"tokens, not {vocab_size}"
            )
        library = _library_tokenizer(models.BPE(), pattern)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(special),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        feed = _Feed(texts)
        library.train_from_iterator(feed, trainer)
        if feed.characters == 0:
            raise UserError("there is no text to train on: give at least one text that is not empty")
        merges = json.loads(library.to_str())["model"]["merges"]
        ranks = {bytes([value]): value for value in range(256)}
        for left, right in merges:
            ranks[bytes(LETTER_BYTES[letter] for letter in left + right)] = len(ranks)
        return cls(ranks, pattern, special_ids(special, len(ranks)))

    @classmethod
    def from_ranks(
        cls, content: bytes, pattern: str, special_tokens: Mapping[str, int], name: str = RANKS
    ) -> "BpeTokenizer":
        """Reads the `content` of a tiktoken rank file: on each line a token's bytes in base64, a space, and its rank.

        Raises:
          UserError: the content is damaged; `name` is the file in the message.
        """
        ranks: dict[bytes, int] = {}
        for number, line in enumerate(content.splitlines(), 1):
            if not line.strip():
                continue
            try:
                token, rank = line.split()
                piece = base64.b64decode(token, validate=True)
                value = int(rank)
            except (ValueError, binascii.Error):
                raise UserError(
                    f"{name} is not a tiktoken rank file: line {number} is not base64, space, rank"
                ) from None
            if piece in ranks or not piece:
                raise UserError(f"{name} is damaged: line {number} has an empty or repeated token")
            ranks[piece] = value
        try:
            return cls(ranks, pattern, special_tokens)
        except ValueError as error:
            raise UserError(f"{name} is not a complete rank file: {error}") from None

    def to_hugging_face(self) -> tokenizers.Tokenizer:
        """Returns the same tokenizer as one of the `tokenizers` library, whose `save` writes a `tokenizer.json`.

        Raises:
          UserError: a token is not the merge of two earlier tokens.
        """
        vocab = {_letters(piece): rank for piece, rank in self._ranks.items()}
        merges = []
        for piece, rank in sorted(self._ranks.items(), key=lambda item: item[1]):
            if len(piece) > 1:
                left, right = self._parts(piece, rank)
                merges.append((_letters(left), _letters(right)))
        library = _library_tokenizer(models.BPE(vocab={**vocab, **self.special_tokens}, merges=merges), self.pattern)
        library.decoder = decoders.ByteLevel()
        library.add_special_tokens(
            [tokenizers.AddedToken(name, normalized=False, special=True) for name in self.special_tokens]
        )
        return library

    def merges(self, index: int) -> list[list[bytes]]:
        """How token `index` is merged: its bytes, its pieces after each merge, and last the whole token alone. Empty
        for special tokens, which are never merged.

        Raises:
          UserError: there is no such id.
        """
        piece = self.decode_bytes([index])
        if self._ranks.get(piece) != index:
            return []
        parts = [bytes([value]) for value in piece]
        steps = [list(parts)]
        while len(parts) > 1:
            pairs = [self._ranks.get(left + right, index + 1) for left, right in zip(parts, parts[1:], strict=False)]
            best = min(range(len(pairs)), key=pairs.__getitem__)
            if pairs[best] > index:  # a rank file may hold tokens that no merge of two others makes
                parts = [piece]
            else:
                parts[best : best + 2] = [parts[best] + parts[best + 1]]
            steps.append(list(parts))
        return steps

    def _parts(self, piece: bytes, rank: int) -> list[bytes]:
        """Returns the two tokens whose merge is `piece`, found by merging it with lower ranks only."""
        parts = [bytes([value]) for value in piece]
        while len(parts) > 2:
            pairs = [self._ranks.get(left + right, rank) for left, right in zip(parts, parts[1:], strict=False)]
            best = min(range(len(pairs)), key=pairs.__getitem__)
            if pairs[best] >= rank:
                raise UserError(
                    f"token {rank} ({piece!r}) is not a merge of two earlier tokens, as a list of merges requires"
                )
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        return parts

    def _ordinary_batch(self, texts: list[str]) -> list[np.ndarray]:
        workers = min(os.cpu_count() or 1, len(texts))
        if workers == 1 or sum(map(len, texts)) < CHUNK_CHARACTERS:
            return [self._ordinary(text) for text in texts]
        # The engine releases the interpreter's lock. A few large jobs, since a future per document costs too much.
        bounds = np.linspace(0, len(texts), 4 * workers + 1).astype(int)
        slices = [texts[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]
        with ThreadPoolExecutor(workers) as pool:
            done = pool.map(lambda part: [self._ordinary(text) for text in part], slices)
            return [ids for part in done for ids in part]

    def _ordinary(self, text: str) -> np.ndarray:
        ids = [self._engine.encode_to_numpy(chunk, disallowed_special=()) for chunk in chunks([text])]
        return np.concatenate(ids).astype(np.int32) if ids else np.empty(0, np.int32)

    def manifest(self) -> dict[str, Any]:
        return {"pattern": self.pattern, "special_tokens": self.special_tokens}

    def _files(self) -> dict[str, bytes]:
        lines = [
            base64.b64encode(piece) + f" {rank}\n".encode()
            for piece, rank in sorted(self._ranks.items(), key=lambda item: item[1])
        ]
        return {RANKS: b"".join(lines)}

    @classmethod
    def _load(cls, manifest: dict[str, Any], files: dict[str, bytes]) -> "BpeTokenizer":
        return cls.from_ranks(files[RANKS], manifest["pattern"], manifest["special_tokens"])


class _Feed:
    """Feeds texts to the trainer in bounded chunks, and counts their characters."""

    def __init__(self, texts: Iterable[str]):
        self._texts = texts
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            check_text(text)
            for chunk in chunks([text], TRAINING_CHARACTERS):
                self.characters += len(chunk)
                yield chunk


def _library_tokenizer(model: models.Model, pattern: str) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pattern]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return library


def _byte_letters() -> list[str]:
    """Returns GPT-2's printable stand-in for each byte: itself if printable, else the next letter from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(value if value in printable else next(spare)) for value in range(256)]


BYTE_LETTERS = _byte_letters()
LETTER_BYTES = {letter: value for value, letter in enumerate(BYTE_LETTERS)}


def _letters(piece: bytes) -> str:
    return "".join(BYTE_LETTERS[value] for value in piece)
