"""Printing sampled text on a terminal as it is generated, and conversing with a model.

On a terminal, control characters in the text appear as escapes: a model may have learned any. A file or a pipe gets the
text as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from gpt_jax.config.errors import UserError
from gpt_jax.config.printable import printable
from gpt_jax.data.tokenizer import Tokenizer

# (ids of the conversation, turn) → new ids as they are generated
Answer = Callable[[list[int], int], Iterable[list[int]]]
QUIT = ("/quit", "/exit")


def talk(tokenizer: Tokenizer, answer: Answer, system: str | None) -> None:
    """Reads a line, prints the model's answer, and repeats until the input ends.

    A message for which the context has no room is refused, and a new conversation starts.

    Raises:
      UserError: the first message of a conversation has no room in the context.
    """
    messages, turn = first_messages(system), 0
    while (said := _read_line()) is not None:
        if not said.strip():
            continue
        messages.append({"role": "user", "content": said})
        try:
            answered = write(answer(tokenizer.chat(messages), turn), tokenizer)
        except UserError as error:
            if len(messages) == len(first_messages(system)) + 1:
                raise
            print(f"{printable(str(error))}; a new conversation starts", file=sys.stderr)
            messages = first_messages(system)
            continue
        messages.append({"role": "assistant", "content": answered})
        turn += 1


def first_messages(system: str | None) -> list[dict[str, str]]:
    """A conversation without messages, except the system message if it is not None."""
    return [] if system is None else [{"role": "system", "content": system}]


def show(pieces: Iterable[list[list[int]]], tokenizer: Tokenizer, waiting: list[str]) -> None:
    """Prints samples below one another, each preceded by its text in `waiting` (the prompt).

    The first is printed while it is generated, the others at the end. `pieces` yields new ids for each sample.
    """
    decoders = [tokenizer.stream() for _ in waiting]
    for piece in pieces:
        for i, ids in enumerate(piece):
            waiting[i] += decoders[i].push(visible(ids, tokenizer))
        _print(waiting[0], end="")
        waiting[0] = ""
    for i, decoder in enumerate(decoders):
        rule = f"{'─' * 24} {i + 1}\n" if i else ""
        _print(f"{rule}{waiting[i]}{decoder.flush()}")


def write(pieces: Iterable[list[int]], tokenizer: Tokenizer) -> str:
    """Prints the text of new ids as they are generated, without the stop token, and returns it."""
    decoder, text = tokenizer.stream(), ""
    for ids in pieces:
        new = decoder.push(visible(ids, tokenizer))
        _print(new, end="")
        text += new
    rest = decoder.flush()
    _print(rest)
    return text + rest


def visible(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """`ids` without stop tokens, and without ids of the model that are outside the tokenizer's vocabulary."""
    return [token for token in ids if token not in tokenizer.stop and token < tokenizer.vocab_size]


def _print(text: str, end: str = "\n") -> None:
    print(printable(text) if sys.stdout.isatty() else text, end=end, flush=True)


def _read_line() -> str | None:
    try:
        line = input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
    return None if line.strip() in QUIT else line
