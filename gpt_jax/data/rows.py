"""Rows of a token stream: where the stream is cut, which targets count, which document each position belongs to.

A split of a corpus is one stream of token ids. If the vocabulary has an end-of-text token E, the documents `a b` and
`c d` form the stream `E a b E c d E`. As a target, E ends a document; as an input, it starts the next one. Every
target, including the first token of a document and its end, is therefore predicted from inputs of its own document
only, and unconditional sampling starts from E. A vocabulary without E gives `a b c d`; there the first token of each
document has no context and does not count as a target.

The N targets of a stream (all its tokens but the first) are cut into rows of T targets; the inputs of a row are the
same tokens shifted by one place. Consecutive rows share one token. The last row may be short; it is padded with token 0
at weight 0.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import grain
import numpy as np

Array = Any  # np.ndarray, jax.Array, or jax.ShapeDtypeStruct where a program is only compiled
MASK64 = 2**64 - 1


class Batch(NamedTuple):
    """B rows of T tokens: NumPy arrays as the packer makes them, JAX arrays once they are on devices.

    A pytree, so that `jax.tree.map` reaches its arrays. Padding has token 0, target 0, weight 0, segment 0 and
    position 0. `segments` numbers the documents of a row from 1, and `positions` counts from 0 in each document (or
    from the start of the row, if the document began in an earlier row). Both are None in every batch of a data set
    that has one document per row.
    """

    tokens: Array  # (B, T) int32
    targets: Array  # (B, T) int32
    weights: Array  # (B, T) float32: 1 where the target counts, else 0
    segments: Array | None = None  # (B, T) int32
    positions: Array | None = None  # (B, T) int32


@runtime_checkable
class Rows(Protocol):
    """A sequence of rows, each a pure function of its number."""

    @property
    def count(self) -> int | None:
        """The number of rows in an epoch; None if rows never repeat."""

    @property
    def length(self) -> int:
        """T, the number of targets in a row."""

    def gather(self, numbers: np.ndarray) -> Batch:
        """Returns the rows with these `numbers` (B,), in the order given."""


class Stream(NamedTuple):
    """The tokens of a split.

    Attributes:
      tokens: all documents, one after another.
      starts: the index in `tokens` at which each document begins; the first is 0.
      ended: whether an end-of-text token precedes and follows every document. If so, the token that follows a document
        is a target of that document.
    """

    tokens: np.ndarray  # (N + 1,) unsigned
    starts: np.ndarray  # (documents,) int64, increasing
    ended: bool

    @property
    def targets(self) -> int:
        """N, the number of tokens after the first."""
        return len(self.tokens) - 1

    @property
    def counted_targets(self) -> int:
        """The number of targets of weight 1."""
        return self.targets if self.ended else len(self.tokens) - len(self.starts)

    def cut(self, begins: np.ndarray, length: int, segmented: bool) -> Batch:
        """Returns rows of T = `length` targets.

        Args:
          begins: where the inputs of each row start in the stream (B,). A start of −n stands for 0 and shortens the row
            by n targets.
          length: T; shorter rows are padded to it.
          segmented: whether to return segments and positions.
        """
        first = np.maximum(begins, 0)
        stop = np.minimum(begins + length, self.targets)
        places = np.minimum(first[:, None] + np.arange(length + 1), self.targets)
        real = places[:, :-1] < stop[:, None]
        ids = self.tokens[places].astype(np.int32)
        tokens, targets = np.where(real, ids[:, :-1], 0), np.where(real, ids[:, 1:], 0)
        if not segmented:
            return Batch(tokens, targets, real.astype(np.float32))
        document = np.searchsorted(self.starts, places, side="right")
        counted = real if self.ended else real & (document[:, 1:] == document[:, :-1])
        document, places = document[:, :-1], places[:, :-1]
        positions = places - np.maximum(self.starts[document - 1], first[:, None])
        segments = document - document[:, :1] + 1
        return Batch(
            tokens,
            targets,
            counted.astype(np.float32),
            np.where(real, segments, 0).astype(np.int32),
            np.where(real, positions, 0).astype(np.int32),
        )


class FixedRows:
    """The rows of a stream in order, with every target once: the validation set."""

    def __init__(self, stream: Stream, length: int, segmented: bool):
        self._stream, self.length, self._segmented = stream, length, segmented
        self.count: int | None = -(-stream.targets // length)

    def gather(self, numbers: np.ndarray) -> Batch:
        return self._stream.cut(numbers * self.length, self.length, self._segmented)


class ShuffledRows:
    """The rows of a stream without end, in a new order each epoch that depends on (seed, epoch) only.

    The first epoch has every target once. Later epochs cut the stream at places shifted by `offset(epoch)`, so that
    rows do not repeat. Every epoch has the same number of rows; to keep it, an epoch may leave out its first `offset`
    targets.
    """

    def __init__(self, stream: Stream, length: int, segmented: bool, seed: int):
        self.stream, self.length, self._segmented, self._seed = stream, length, segmented, seed
        self._epoch_rows = -(-stream.targets // length)
        self.count: int | None = self._epoch_rows
        self._order = grain.MapDataset.range(self._epoch_rows).seed(seed % 2**32).shuffle().repeat()

    def offset(self, epoch: int) -> int:
        """Returns by how many targets the rows of this epoch are shifted, in [0, T)."""
        if epoch == 0 or self._epoch_rows == 1:
            return 0
        generator = np.random.Generator(np.random.Philox(key=np.array([self._seed & MASK64, epoch], np.uint64)))
        return int(generator.integers(self.length))

    def gather(self, numbers: np.ndarray) -> Batch:
        return self.stream.cut(self.begins(numbers), self.length, self._segmented)

    def begins(self, numbers: np.ndarray) -> np.ndarray:
        """Where in the stream the rows with these `numbers` begin (B,), as `Stream.cut` takes it."""
        places = np.array([self._order[int(number)] for number in numbers], np.int64)
        epochs = numbers // self._epoch_rows
        shifts = {epoch: self._shift(epoch) for epoch in set(epochs.tolist())}
        return places * self.length + np.array([shifts[epoch] for epoch in epochs.tolist()], np.int64)

    def _shift(self, epoch: int) -> int:
        # If the shift is at least the length of the short last row, the shifted stream needs one row less. The first
        # row then starts before the stream and holds the targets before the shift.
        offset, short = self.offset(epoch), self.stream.targets - (self._epoch_rows - 1) * self.length
        return offset if offset < short else offset - self.length
