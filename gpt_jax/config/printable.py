"""Makes text that others wrote safe to show on a terminal."""

from __future__ import annotations

import unicodedata

# Control and format characters, surrogates, and separators of lines and paragraphs.
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
SHOWN = frozenset("\n\t\u200c\u200d")  # with the joiners of emoji and of Persian and Indian scripts


def printable(text: str) -> str:
    r"""Returns `text` with control characters as escapes, such as `\x1b`.

    What remains can neither move the cursor, change colours, set the title or the clipboard, nor reverse the direction
    of what follows. Line feeds, tabs and the joiners of scripts stay.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter in SHOWN or unicodedata.category(letter) not in HIDDEN else _escape(letter) for letter in text
    )


def _escape(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
