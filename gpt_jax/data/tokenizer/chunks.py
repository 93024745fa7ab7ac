"""Long texts cut into chunks of bounded size, without changing their tokens."""

import functools
import io
import re
from collections.abc import Callable, Iterable, Iterator

from etils import epath

from gpt_jax.config.errors import UserError
from gpt_jax.config.foreign import open_regular

# Bounds the stack of the regular expression that splits text into words.
CHUNK_CHARACTERS = 1 << 16
# Bounds the length of a word: the time of the library's trainer grows with its square.
TRAINING_CHARACTERS = 1 << 11
_CUT = re.compile(r"\S \S")


def chunks(blocks: Iterable[str], size: int = CHUNK_CHARACTERS) -> Iterator[str]:
    """Yields one document, given as consecutive `blocks`, in chunks of at most `size` characters.

    Cuts fall before a space between two characters that are not white space. Every split pattern cuts there, too, so
    the tokens of the chunks are those of the document. Only `size` characters without such a place are cut elsewhere.
    """
    held = ""
    for block in blocks:
        held += block
        start = 0
        while len(held) - start > size:
            stop = _last_cut(held, start, start + size)
            yield held[start:stop]
            start = stop
        held = held[start:]
    if held:
        yield held


def _last_cut(text: str, start: int, stop: int) -> int:
    # The pattern is symmetric, so its last match is the first match in the reversed text.
    last = _CUT.search(text[start : stop + 1][::-1])
    return stop - last.start() - 1 if last else stop


def read_chunks(paths: Iterable[epath.PathLike], advance: Callable[[int], object]) -> Iterator[str]:
    """Yields the text of UTF-8 files in `chunks`; each file is one document, and no file is read as a whole.

    Args:
      paths: the files.
      advance: called with the size in bytes of each chunk before it is yielded.

    Raises:
      MissingFile: there is no such file.
      UserError: a file is not UTF-8, or a folder, a pipe or a device.
    """
    for path in paths:
        # newline="" keeps line endings as they are in the file.
        opened = epath.Path(path).open("rb") if "://" in str(path) else open(open_regular(path), "rb")
        with io.TextIOWrapper(opened, encoding="utf-8", newline="") as file:
            blocks = iter(functools.partial(file.read, CHUNK_CHARACTERS), "")
            try:
                for chunk in chunks(blocks):
                    advance(len(chunk.encode("utf-8")))
                    yield chunk
            except UnicodeDecodeError as error:
                raise UserError(f"{path} is not UTF-8 text ({error.reason}): convert it or leave it out") from None
