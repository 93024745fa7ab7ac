"""How sampled text appears on a terminal, and conversations there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from gpt_jax.data.tokenizer import Tokenizer

Answer = Callable[[list[int], int], Iterable[list[int]]]  # (ids of the conversation, turn) → new ids as they come
QUIT = ("/quit", "/exit")


def talk(tokenizer: Tokenizer, answer: Answer, system: str | None) -> None:
    """Reads a line, prints what the model says to it, and so on, until the input ends.

    A turn that the context has no room for is refused, and the conversation begins anew.
    """
    messages, turn = opening(system), 0
    while (said := _read_line()) is not None:
        if not said.strip():
            continue
        messages.append({"role": "user", "content": said})
        try:
            answered = write(answer(tokenizer.chat(messages), turn), tokenizer)
        except ValueError as error:
            if len(messages) == len(opening(system)) + 1:
                raise
            print(f"{error}; the conversation begins anew", file=sys.stderr)
            messages = opening(system)
            continue
        messages.append({"role": "assistant", "content": answered})
        turn += 1


def opening(system: str | None) -> list[dict[str, str]]:
    """A conversation in which nobody has spoken yet."""
    return [] if system is None else [{"role": "system", "content": system}]


def show(pieces: Iterable[list[list[int]]], tokenizer: Tokenizer, waiting: list[str]) -> None:
    """Prints samples one below the other, each after what is `waiting`; the first while it is written."""
    decoders = [tokenizer.stream() for _ in waiting]
    for piece in pieces:
        for i, ids in enumerate(piece):
            waiting[i] += decoders[i].push(shown(ids, tokenizer))
        print(waiting[0], end="", flush=True)
        waiting[0] = ""
    for i, decoder in enumerate(decoders):
        rule = f"{'─' * 24} {i + 1}\n" if i else ""
        print(f"{rule}{waiting[i]}{decoder.flush()}")


def write(pieces: Iterable[list[int]], tokenizer: Tokenizer) -> str:
    """Prints the text of ids as they come, without the one they stop at, and returns it."""
    decoder, text = tokenizer.stream(), ""
    for ids in pieces:
        new = decoder.push(shown(ids, tokenizer))
        print(new, end="", flush=True)
        text += new
    rest = decoder.flush()
    print(rest)
    return text + rest


def shown(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """`ids` without those at which sampling stops, and without those that the model has and its vocabulary lacks."""
    return [token for token in ids if token not in tokenizer.stop and token < tokenizer.vocab_size]


def _read_line() -> str | None:
    try:
        line = input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
    return None if line.strip() in QUIT else line
