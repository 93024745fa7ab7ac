"""Long texts in pieces of bounded size, whose tokens are those of the whole."""

import functools
import io
import re
from collections.abc import Callable, Iterable, Iterator

from etils import epath

from gpt_jax.config.errors import UserError

# Bounds the stack of the regular expression that splits into words.
CHUNK_CHARACTERS = 1 << 16
# Bounds a word: the library's trainer takes time that grows with the square of a word's length.
TRAINING_CHARACTERS = 1 << 11
_CUT = re.compile(r"\S \S")


def chunks(blocks: Iterable[str], size: int = CHUNK_CHARACTERS) -> Iterator[str]:
    """One document, given in consecutive blocks, in pieces of at most `size` characters.

    It is cut before a space between two characters that are not white space, where every pattern cuts too, so the
    pieces' tokens are the document's. Only a run of `size` characters without such a place is cut anywhere.
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
    # The pattern reads the same both ways, so the last place is the first one of the text reversed.
    last = _CUT.search(text[start : stop + 1][::-1])
    return stop - last.start() - 1 if last else stop


def read_chunks(paths: Iterable[epath.PathLike], report: Callable[[int], object]) -> Iterator[str]:
    """The text of UTF-8 files in `chunks`, one document a file, no file read whole.

    `report` is told the bytes of each chunk before it is yielded. Raises ValueError for a file that is not UTF-8.
    """
    for path in paths:
        # No translation of line ends: the text is what the bytes say.
        with io.TextIOWrapper(epath.Path(path).open("rb"), encoding="utf-8", newline="") as file:
            blocks = iter(functools.partial(file.read, CHUNK_CHARACTERS), "")
            try:
                for chunk in chunks(blocks):
                    report(len(chunk.encode("utf-8")))
                    yield chunk
            except UnicodeDecodeError as error:
                raise UserError(f"{path} is not UTF-8 text ({error.reason}); convert it or leave it out.") from None
