"""Markdown that reads as the text it was made from."""

from __future__ import annotations

from collections.abc import Sequence


def pipe_table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """A pipe table whose cells are escaped; columns with `right` are flush right."""
    lines = [heads, ["--:" if r else "---" for r in right], *rows]
    body = [[cell if i == 1 else escape_markdown(cell) for cell in row] for i, row in enumerate(lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in body)


def escape_markdown(text: str) -> str:
    """`text` on one line, with everything escaped that Markdown or HTML would interpret."""
    escaped = "".join(f"\\{c}" if c in "\\`*_[]|#~" else c for c in " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
