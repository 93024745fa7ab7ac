"""Pages in headless Chromium, where there is one."""

import html
from pathlib import Path

import pytest

from experiments.benchmarks.browser import CHROMIUM

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


def framed(report: Path, width: int) -> Path:
    """A page that holds the report in a frame as narrow as a phone, which a window can't be, and so high that no
    scroll bar takes from its width.
    """
    page = report.with_name("framed.html")
    source = html.escape(report.read_text("utf-8"))
    style = f"border: 0; width: {width}px; height: 20000px"
    body = f'<body><iframe style="{style}" srcdoc="{source}"></iframe></body>'
    page.write_text(f'<!doctype html><meta charset="utf-8">{body}', "utf-8")  # else browsers guess
    return page
