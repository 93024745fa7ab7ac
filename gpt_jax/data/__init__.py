"""Sequences to train and validate on: text from corpora and files, or synthetic tasks.

data = open_data(config.data, context_length=256, seed=0)
data.batch(step=0, batch_size=8)          # a pure function of (seed, step)
"""

import os

from gpt_jax.config import DataConfig, Text
from gpt_jax.data.batches import Data
from gpt_jax.data.cache import cache_folder
from gpt_jax.data.rows import Batch, FixedRows, ShuffledRows
from gpt_jax.data.tokenized import tokenized_text

__all__ = ["Batch", "Data", "open_data"]


def open_data(
    config: DataConfig,
    context_length: int,
    seed: int,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Data:
    """The data of `config`; `seed` decides the order of training and nothing else.

    Rows of text have T = `context_length` targets. Text is prepared once, in `cache_dir` (None: `$GPT_JAX_CACHE`, or
    `~/.cache/gpt_jax`).

    Raises:
      FileNotFoundError, ConnectionError, ValueError: there is no text, or none that can be used; the message says what
      to do.
    """
    if not isinstance(config, Text):
        from gpt_jax.data.tasks import open_task

        return open_task(config, context_length, seed)
    text = tokenized_text(config, cache_folder(cache_dir), progress)
    train, validation = text.train.stream, text.validation.stream
    segmented = len(train.starts) > 1 or len(validation.starts) > 1
    return Data(
        train=ShuffledRows(train, context_length, segmented, seed),
        held_out=FixedRows(validation, context_length, segmented),
        tokenizer=text.tokenizer,
        vocab_size=text.tokenizer.vocab_size,
        content_hash=text.content_hash,
        is_task=False,
        train_tokens=train.counted_targets,
        validation_tokens=validation.counted_targets,
        validation_bytes=text.validation.target_bytes(text.tokenizer),
    )
