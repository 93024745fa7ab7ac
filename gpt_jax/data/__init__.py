"""Training and validation data: text from corpora and files, or synthetic tasks.

data = open_data(config.data, context_length=256, seed=0)
data.batch(step=0, batch_size=8)          # a pure function of (seed, step)
"""

import os

from gpt_jax.config import DataConfig, Text
from gpt_jax.data.batches import Data
from gpt_jax.data.cache import cache_folder
from gpt_jax.data.rows import Batch, FixedRows, ShuffledRows
from gpt_jax.data.tokenized import check_tokens, tokenized_text

__all__ = ["Batch", "Data", "check_data", "open_data"]


def check_data(config: DataConfig, cache_dir: str | os.PathLike[str] | None = None) -> int:
    """Compares what the cache has of the data with its hashes, byte by byte. Returns the number of bytes read.

    Returns 0 for a synthetic task, and for text that the cache does not have. Builds nothing.

    Raises:
      Damaged: the cache is damaged; `open_data` builds it again.
      MissingFile, UserError: the text or the tokenizer files are gone or damaged, so that nothing can be looked up.
    """
    return check_tokens(config, cache_folder(cache_dir)) if isinstance(config, Text) else 0


def open_data(
    config: DataConfig,
    context_length: int,
    seed: int,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Data:
    """Opens the data that `config` describes.

    Args:
      config: a corpus or a synthetic task.
      context_length: T, the number of targets in a row of text. Tasks choose their own T ≤ `context_length`.
      seed: decides the order of the training rows of text, or which rows a task draws; validation does not depend on
        it.
      cache_dir: where prepared text is kept; None means `$GPT_JAX_CACHE`, or `~/.cache/gpt_jax`.
      progress: shows progress bars on standard error while text is prepared.

    Raises:
      MissingFile: the text or tokenizer files do not exist.
      Unreachable: the corpus cannot be downloaded.
      ConfigError: the rows of the task are longer than the context.
      UserError: the corpus is unknown, empty, or cannot be decoded or tokenized.
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
