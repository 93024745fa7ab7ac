"""A description of a tokenizer for the terminal or a notebook."""

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from gpt_jax.data.tokenizer.interface import Tokenizer

_COLOURS = ("black on cyan", "black on yellow", "black on green", "black on magenta")


def describe(tokenizer: Tokenizer, text: str | None = None) -> Group:
    """Describes the tokenizer and shows the tokens of `text`, with special tokens recognised (None: its last 20
    tokens).
    """
    facts = {
        "kind": tokenizer.kind,
        "vocabulary": f"{tokenizer.vocab_size} tokens",
        **{name.replace("_", " "): _listing(value) for name, value in tokenizer.manifest().items()},
        "end-of-text id": tokenizer.end_of_text,
        "content hash": tokenizer.content_hash(),
    }
    table = Table("", Column(overflow="fold"), show_header=False)
    for name, value in facts.items():
        table.add_row(name, Text(repr(value)[1:-1] if isinstance(value, str) else str(value)))
    if text is None:
        ids = list(range(max(0, tokenizer.vocab_size - 20), tokenizer.vocab_size))
        title = f"The last {len(ids)} tokens:"
    else:
        ids = tokenizer.encode(text, "all")
        title = f"{len(text)} characters, {len(text.encode('utf-8'))} bytes, {len(ids)} tokens:"
    tokens = Text()
    for place, index in enumerate(ids):
        piece = tokenizer.decode_bytes([index])
        try:
            shown = repr(piece.decode("utf-8"))[1:-1]
        except UnicodeDecodeError:
            shown = repr(piece)[2:-1]
        tokens.append(shown, _COLOURS[place % len(_COLOURS)]).append(f" {index}  ", "dim")
    return Group(table, Text(title), tokens)


def _listing(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {index}" for name, index in value.items()) or "none"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
