"""How the tokens of a `tokenizer.json` are merged, by the file's own list of merges."""

from collections.abc import Callable, Mapping
from typing import Any

from gpt_jax.data.tokenizer.bpe import LETTER_BYTES

Merges = Callable[[int], list[list[bytes]]]


def piece_bytes(token: str) -> bytes:
    """The bytes of a byte-level token, which is written in a letter for each byte."""
    if all(letter in LETTER_BYTES for letter in token):
        return bytes(LETTER_BYTES[letter] for letter in token)
    return token.encode()


def merges_of(definition: Mapping[str, Any], bytewise: bool) -> Merges | None:
    """`BpeTokenizer.merges` for a checked definition, whose pieces begin as letters where it is not `bytewise`; None
    where its model is no BPE, or marks the parts of words.
    """
    model = definition["model"]
    marks = [model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix")]
    if model.get("type") != "BPE" or any(marks):
        return None
    pairs = (tuple(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in model["merges"])
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    added = {token["id"] for token in definition["added_tokens"]}
    tokens = {index: token for token, index in model["vocab"].items() if index not in added}
    write = piece_bytes if bytewise else str.encode

    def merges(index: int) -> list[list[bytes]]:
        parts = list(tokens[index]) if index in tokens else []
        steps = [list(map(write, parts))]
        while len(parts) > 1:
            found = [ranks.get(pair, len(ranks)) for pair in zip(parts, parts[1:], strict=False)]
            best = min(range(len(found)), key=found.__getitem__)
            if found[best] == len(ranks):
                return []  # the file looks this token up whole
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
            steps.append(list(map(write, parts)))
        return steps if parts else []

    return merges
