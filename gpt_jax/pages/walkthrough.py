"""The page that walks through models: one panel for each stage, from plain records with NumPy arrays inside.

Arrays are embedded whole, as base64 of little-endian float32 or int32; scripts round numbers where they show them.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from gpt_jax.pages.render import read_part, render

PARTS = (
    "walkthrough.css",
    "walkthrough_parts.js",
    "walkthrough_grid.js",
    "walkthrough_stages.js",
    "walkthrough_heads.js",
    "walkthrough_output.js",
    "walkthrough.js",
)


def walkthrough_page(title: str, prompt: str, arms: Sequence[Any], command: str, asks: bool = False) -> str:
    """A self-contained page of one model, or of several side by side.

    Args:
      title: the heading.
      prompt: the text that was read.
      arms: for each model the records of `gpt_jax.analysis.walkthrough`; all of the same prompt.
      command: the command line that made the page.
      asks: whether the page asks for another prompt, which a server answers.
    """
    facts = "".join(_facts(arm) for arm in arms)
    notes = "".join(
        f'<p class="note">{escape(note if len(arms) == 1 else f"{arm.name}: {note}")}</p>'
        for arm in arms
        for note in arm.notes
    )
    head = (
        f'<p class="eyebrow">Look inside</p><h1>{escape(title)}</h1>'
        f'<p class="line asked"><bdi>{escape(prompt)}</bdi></p>{_question(prompt) if asks else ""}{facts}{notes}'
    )
    made = f"<h2>Made by</h2><pre>{escape(command)}</pre>"
    data = f'<script type="application/json" id="walk">{embedded(arms)}</script>'
    return render(title, f"{head}{read_part('walkthrough.html')}{made}{data}", PARTS)


def question_page(title: str, prompt: str, problem: str) -> str:
    """The page that says why there is none of `prompt`, and asks for another one."""
    warning = f'<p class="warning">{escape(problem)}</p>'
    return render(
        title, f'<p class="eyebrow">Look inside</p><h1>{escape(title)}</h1>{warning}{_question(prompt)}', PARTS[:1]
    )


def _question(prompt: str) -> str:
    return (
        '<form class="ask" method="get" action="/"><label for="prompt">Another text</label>'
        f'<textarea id="prompt" name="prompt" rows="2">\n{escape(prompt)}</textarea>'
        "<button>Walk through it</button></form>"
    )


def _facts(arm: Any) -> str:
    rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in arm.facts.items())
    return f'<h2 class="arm-name">{escape(arm.name)}</h2><dl class="facts">{rows}</dl>'


def embedded(record: Any) -> str:
    """Records as JSON that is safe within a script element."""
    return json.dumps(_plain(record), ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        kind = "i4" if value.dtype.kind in "iu" else "f4"
        data = base64.b64encode(np.ascontiguousarray(value, f"<{kind}").tobytes()).decode()
        return {"shape": value.shape, "type": kind, "data": data}
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
