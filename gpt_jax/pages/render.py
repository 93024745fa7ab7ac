"""One self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

PARTS = ("page.css", "chart.css", "page.js", "page.html")


def render(title: str, body: str, parts: Sequence[str] = ()) -> str:
    """The page around `body`, with its style and script inside; its policy lets no other script run. `parts` are
    further style sheets and scripts, files beside this one; the scripts share one scope.
    """
    style, charts, script, page = (read_part(part) for part in PARTS)
    charts += "".join(read_part(part) for part in parts if part.endswith(".css"))
    more = "".join(read_part(part) for part in parts if part.endswith(".js"))
    script += f'"use strict";\n(() => {{\n{more}}})();\n' if more else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(page).substitute(
        title=escape(title), style=style + charts, script=script, script_hash=f"sha256-{digest}", body=body
    )


def read_part(name: str) -> str:
    """The text of a file beside this one."""
    return files("gpt_jax.pages").joinpath(name).read_text("utf-8")
