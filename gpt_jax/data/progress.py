"""A progress bar that counts characters of text, on standard error so that it does not mix with a command's output."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gpt_jax.data.files import Document

# Called with a number of characters, moves the bar forward.
Advance = Callable[[int], None]


@contextlib.contextmanager
def progress_bar(title: str, total: int | None, shown: bool) -> Iterator[Advance]:
    """Shows a bar of `total` characters (None: unknown) on a terminal or in a notebook; yields what advances it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    drawn = shown and (console.is_terminal or console.is_jupyter)
    with Progress(*columns, console=console, transient=True, disable=not drawn) as progress:
        task = progress.add_task(title, total=total)
        yield lambda characters: progress.advance(task, characters)


def tracked(documents: Iterable[Document], advance: Advance) -> Iterator[Document]:
    """Yields the documents, and calls `advance` with the length of each after it was consumed."""
    for document in documents:
        yield document
        advance(len(document.text))
