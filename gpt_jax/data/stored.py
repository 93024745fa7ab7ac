"""Data sets that TFDS has written to disk, read without TensorFlow."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import absl.logging

from gpt_jax.config.errors import UserError

READ_AT_ONCE = 2**24  # bytes


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the log messages, prints and progress bars of TFDS builders; we show our own."""
    import tensorflow_datasets as tfds

    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)


def directory_of(folder: Path) -> Path:
    """Returns the directory of the only data set below `folder`."""
    return next(folder.rglob("dataset_info.json")).parent


def read_examples(directory: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yields the examples of a split of the data set in `directory`, in order.

    Raises:
      UserError: the data set is damaged.
    """
    import tensorflow_datasets as tfds

    with damage_of(directory):
        builder = tfds.builder_from_directory(directory)
        source, info = builder.as_data_source(split), builder.info.splits[split]
        step = max(1, READ_AT_ONCE * len(source) // max(info.num_bytes, 1))
    for first in range(0, len(source), step):
        with damage_of(directory):
            examples = source.__getitems__(range(first, min(first + step, len(source))))
        yield from examples


@contextlib.contextmanager
def damage_of(data_set: object) -> Iterator[None]:
    """Reports what the libraries raise when the files of a data set are damaged, such as a wrong checksum.

    Raises:
      UserError: `data_set` is damaged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # RuntimeError, ParseError of protobuf, ValueError, KeyError and others
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the data set {data_set} is damaged ({reason}): prepare it again") from None
