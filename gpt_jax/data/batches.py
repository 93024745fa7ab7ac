"""Batches: a pure function of (seed, step), of which each process takes its slice."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from gpt_jax.config.errors import UserError
from gpt_jax.data.rows import Batch, Rows
from gpt_jax.data.tokenizer import Tokenizer

PREFETCHED = 8


@dataclass(frozen=True)
class Data:
    """Training rows without end and a fixed set of validation rows.

    `content_hash` changes with the text, the tokenizer or the split, or with a task's definition; it does not with the
    order. `validation_tokens` counts the validation targets of weight 1, `validation_bytes` the UTF-8 bytes they stand
    for (None for tasks).
    """

    train: Rows
    held_out: Rows
    tokenizer: Tokenizer
    vocab_size: int
    content_hash: str
    is_task: bool
    train_tokens: int | None
    validation_tokens: int
    validation_bytes: int | None

    @property
    def row_length(self) -> int:
        """T of every batch: the context length for text, what the task needs for a task."""
        return self.train.length

    @property
    def train_rows(self) -> int | None:
        """Rows of an epoch; None for tasks, whose rows never repeat."""
        return self.train.count

    @property
    def validation_rows(self) -> int:
        """Rows of the validation set."""
        assert self.held_out.count is not None
        return self.held_out.count

    def batch(self, step: int, batch_size: int, process_index: int = 0, process_count: int = 1) -> Batch:
        """This process's B / process_count rows of step `step`: of global rows step·B to step·B + B − 1, in its turn.

        Raises:
          ValueError: the processes cannot share `batch_size` rows evenly, or a negative step.
        """
        share = _share(batch_size, process_index, process_count)
        if step < 0:
            raise UserError(f"A step is numbered from 0, so there is no batch for step {step}.")
        first = step * batch_size + process_index * share
        return self.train.gather(np.arange(first, first + share))

    def batches(
        self, start: int, stop: int, batch_size: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """The batches of steps `start` to `stop` − 1, made ahead on a thread."""
        _share(batch_size, process_index, process_count)
        steps: Any = grain.MapDataset.range(start, stop)
        made = steps.map(lambda step: self.batch(int(step), batch_size, process_index, process_count))
        # One thread keeps ahead of any step; more would take cores from a CPU's arithmetic.
        return iter(made.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCHED)))

    def validation(self, batch_size: int, process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
        """The validation set in order, once; rows of weight 0 fill up the last batch, so that all have one shape."""
        share = _share(batch_size, process_index, process_count)
        for first in range(process_index * share, self.validation_rows + process_index * share, batch_size):
            numbers = np.minimum(np.arange(first, first + share), self.validation_rows - 1)
            yield _blank_from(self.held_out.gather(numbers), self.validation_rows - first)


def _share(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"{process_count} processes cannot share {batch_size} rows evenly; choose a batch size that is a multiple."
        )
    if not 0 <= process_index < process_count:
        raise UserError(f"Process {process_index} is none of {process_count}; they are numbered from 0.")
    return batch_size // process_count


def _blank_from(batch: Batch, count: int) -> Batch:
    """`batch` with every row from number `count` on turned to padding."""
    keep = np.arange(len(batch.tokens))[:, None] < count
    return Batch._make(None if array is None else np.where(keep, array, array.dtype.type(0)) for array in batch)
