"""Which documents the rows of a training step hold, found again from the step's number."""

from typing import NamedTuple

import numpy as np

from gpt_jax.data.batches import Data
from gpt_jax.data.rows import ShuffledRows, Stream

DECODED = 2**20  # tokens; to decode more takes seconds


class Span(NamedTuple):
    """A part of a document in a row of a batch.

    Attributes:
      row: the row's number in the global batch.
      document: the document's number in the training split, in the order of the corpus. For a task, whose rows come
        from no document, the number of the row, from which the task makes it.
      first, stop: the range of the document's tokens that the row holds, its last target included. End-of-text tokens
        around the document are none of its tokens.
      byte: where this text begins in the document, in bytes of UTF-8; None for a task, or if more than DECODED tokens
        stand before it.
    """

    row: int
    document: int
    first: int
    stop: int
    byte: int | None


def sources(data: Data, step: int, batch_size: int) -> list[Span]:
    """The spans of the batch of `step` (from 0), in the order of its rows."""
    numbers = np.arange(step * batch_size, (step + 1) * batch_size)
    rows = data.train
    if not isinstance(rows, ShuffledRows):
        return [Span(i, int(number), 0, rows.length + 1, None) for i, number in enumerate(numbers)]
    found = []
    for row, begin in enumerate(rows.begins(numbers).tolist()):
        for document, first, stop in _parts(rows.stream, begin, rows.length, data.tokenizer.end_of_text):
            found.append(Span(row, document, first, stop, _byte(data, rows.stream, document, first)))
    return found


def _parts(stream: Stream, begin: int, length: int, end_of_text: int | None) -> list[tuple[int, int, int]]:
    """(document, first, stop) for each document of a row, as `Stream.cut` cuts it."""
    first, last = max(begin, 0), min(begin + length, stream.targets)
    documents = np.searchsorted(stream.starts, [first, last], side="right") - 1
    total = len(stream.tokens) - (int(stream.tokens[-1]) == end_of_text)  # the last one ends the last document
    parts = []
    for document in range(int(documents[0]), int(documents[1]) + 1):
        start = int(stream.starts[document]) + stream.ended
        end = int(stream.starts[document + 1]) if document + 1 < len(stream.starts) else total
        low, high = max(first, start) - start, min(last + 1, end) - start
        if high > low:  # else the row holds only the end of text before the document
            parts.append((document, low, high))
    return parts


def _byte(data: Data, stream: Stream, document: int, first: int) -> int | None:
    if first > DECODED:
        return None
    start = int(stream.starts[document]) + stream.ended
    return len(data.tokenizer.decode_bytes(stream.tokens[start : start + first].tolist()))
