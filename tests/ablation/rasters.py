"""Leaves out what takes most of a report's time, and what its tests do not look at: its pictures as pixels."""

import pytest

from gpt_jax.pages.standalone import png as as_pixels

PNG = b"\x89PNG\r\n\x1a\n"
__all__ = ["PNG", "as_pixels", "no_pixels"]


@pytest.fixture(autouse=True)
def no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_jax.ablation.exports.png", lambda svg: PNG)
