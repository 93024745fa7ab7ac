"""Batches as a pure function of (seed, step); each process takes its slice."""

from collections.abc import Callable, Iterator
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
    """An endless sequence of training rows and a fixed set of validation rows.

    Attributes:
      train: the training rows.
      held_out: the validation rows, or the tuning rows of a run with `data.held_out="tuning"`; so below.
      tokenizer: turns text into ids and back.
      vocab_size: V.
      content_hash: identifies the text, tokenizer and split, or the definition of the task, but not the order of rows.
      is_task: whether this is a synthetic task.
      train_tokens: the training targets of weight 1 in one epoch; None for tasks, which never repeat.
      validation_tokens: the validation targets of weight 1.
      validation_bytes: the UTF-8 bytes that these targets stand for; None for tasks.
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
        """T of every batch: the context length for text, the length of a sequence for a task."""
        return self.train.length

    @property
    def train_rows(self) -> int | None:
        """The number of rows in an epoch; None for tasks, whose rows never repeat."""
        return self.train.count

    @property
    def validation_rows(self) -> int:
        """The number of rows in the validation set."""
        assert self.held_out.count is not None
        return self.held_out.count

    def batch(self, step: int, batch_size: int, process_index: int = 0, process_count: int = 1) -> Batch:
        """Returns this process's share of the batch of `step`.

        The global batch has B = `batch_size` rows, numbers step·B to step·B + B − 1. Process i of P takes the i-th
        consecutive run of B / P rows.

        Raises:
          UserError: P does not divide B, there is no such process, `step` is negative, or an id is not below V.
        """
        share = _share(batch_size, process_index, process_count)
        if step < 0:
            raise UserError(f"there is no batch for step {step}: steps are numbered from 0")
        first = step * batch_size + process_index * share
        return self._checked(self.train.gather(np.arange(first, first + share)))

    def batches(
        self,
        start: int,
        stop: int,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
        number: Callable[[int], int] = lambda step: step,
    ) -> Iterator[Batch]:
        """Yields the batches `number(step)` of the steps `start` to `stop` − 1, which a background thread prepares
        ahead.
        """
        _share(batch_size, process_index, process_count)
        steps: Any = grain.MapDataset.range(start, stop)
        made = steps.map(lambda step: self.batch(number(int(step)), batch_size, process_index, process_count))
        # One thread keeps ahead of any training step; more would take CPU cores from the training step itself.
        return iter(made.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCHED)))

    def validation(self, batch_size: int, process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
        """Yields the validation set once, in order; rows of weight 0 complete the last batch."""
        share = _share(batch_size, process_index, process_count)
        for first in range(process_index * share, self.validation_rows + process_index * share, batch_size):
            numbers = np.minimum(np.arange(first, first + share), self.validation_rows - 1)
            yield _blank_from(self._checked(self.held_out.gather(numbers)), self.validation_rows - first)

    def _checked(self, batch: Batch) -> Batch:
        """Returns `batch` if its ids are in the vocabulary: on a device, others are silently wrapped or become NaN."""
        for ids in (batch.tokens, batch.targets):
            if not 0 <= ids.min(initial=0) <= ids.max(initial=0) < self.vocab_size:
                raise UserError(
                    f"the data has a token outside its vocabulary of {self.vocab_size}: its cache has changed since it"
                    " was opened; start again"
                )
        return batch


def _share(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"{process_count} processes cannot share {batch_size} rows evenly: choose a multiple of {process_count}"
        )
    if not 0 <= process_index < process_count:
        raise UserError(f"there is no process {process_index}: the {process_count} processes are numbered from 0")
    return batch_size // process_count


def _blank_from(batch: Batch, count: int) -> Batch:
    """Returns `batch` with row number `count` and every later row replaced by padding."""
    keep = np.arange(len(batch.tokens))[:, None] < count
    return Batch._make(None if array is None else np.where(keep, array, array.dtype.type(0)) for array in batch)
