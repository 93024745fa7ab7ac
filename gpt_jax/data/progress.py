"""A progress bar over characters of text, on standard error so that what a command prints stays clean."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gpt_jax.data.files import Document

Report = Callable[[int], None]


@contextlib.contextmanager
def progress_bar(title: str, total: int | None, shown: bool) -> Iterator[Report]:
    """A bar that the yielded function advances by a number of characters."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    drawn = shown and (console.is_terminal or console.is_jupyter)
    with Progress(*columns, console=console, transient=True, disable=not drawn) as progress:
        task = progress.add_task(title, total=total)
        yield lambda characters: progress.advance(task, characters)


def counted(documents: Iterable[Document], report: Report) -> Iterator[Document]:
    """The documents, each reported once it was used."""
    for document in documents:
        yield document
        report(len(document.text))
