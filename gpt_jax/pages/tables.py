"""Tables of a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def plain_table(heads: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int, identifier: str = "") -> str:
    """A table of texts, the first `text_columns` columns flush left."""
    kinds = [' class="text wrap"' if i < text_columns else "" for i in range(len(heads))]
    head = "".join(f'<th scope="col"{kind}>{escape(text)}</th>' for kind, text in zip(kinds, heads, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    name = f' id="{identifier}"' if identifier else ""
    return f'<div class="scroll"><table{name}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
