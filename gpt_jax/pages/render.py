"""One self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files
from string import Template

PARTS = ("page.css", "chart.css", "page.js", "page.html")


def render(title: str, body: str) -> str:
    """The page around `body`, with its style and script inside; its policy lets no other script run."""
    style, charts, script, page = (files("gpt_jax.pages").joinpath(part).read_text("utf-8") for part in PARTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(page).substitute(
        title=escape(title), style=style + charts, script=script, script_hash=f"sha256-{digest}", body=body
    )
