"""Text that others wrote cannot command a terminal."""

import io
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import cli, writing
from gpt_jax.ablation.findings import Event
from gpt_jax.ablation.records import from_json
from gpt_jax.config.errors import ConfigError, MissingFile, UserError
from gpt_jax.config.printable import printable
from gpt_jax.data.tokenizer import ByteTokenizer
from gpt_jax.data.tokenizer.show import describe

HOSTILE = "\x1b]0;title\x07 \x1b[2J\r\x08\x9b31m \u202egnp.exe \u2066\u2028\x7f\x00\ufeff\U000e0041"


def test_what_commands_a_terminal_is_shown_and_the_rest_stays() -> None:
    assert printable(HOSTILE) == (
        r"\x1b]0;title\x07 \x1b[2J\x0d\x08\x9b31m \u202egnp.exe \u2066\u2028\x7f\x00\ufeff\U000e0041"
    )
    for text in ("a\n\tb é 안 😉 👩\u200d🔬 \u00a0 नमस्ते\u200d \\x1b", ""):
        assert printable(text) == text


@given(st.text())
def test_nothing_that_commands_a_terminal_is_left(text: str) -> None:
    left = printable(text)
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert all(unicodedata.category(x) not in hidden or x in "\n\t\u200c\u200d" for x in left)
    assert printable(left) == left


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("output", [Terminal, io.StringIO])
def test_samples_show_escapes_on_a_terminal_and_reach_a_pipe_as_they_are(
    monkeypatch: pytest.MonkeyPatch, output: type[io.StringIO]
) -> None:
    tokenizer, stdout = ByteTokenizer(), output()
    monkeypatch.setattr(sys, "stdout", stdout)
    ids = tokenizer.encode(HOSTILE)
    assert writing.write([ids[:5], ids[5:]], tokenizer) == HOSTILE
    writing.show([[ids, ids]], tokenizer, [HOSTILE, ""])
    shown = stdout.getvalue()
    assert ("\x1b" in shown) == ("\u202e" in shown) == (output is io.StringIO)
    assert shown.count(HOSTILE if output is io.StringIO else printable(HOSTILE)) == 4


def test_errors_warnings_tokens_and_names_are_neutral(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in (UserError, MissingFile, ConfigError):
        assert str(kind(HOSTILE)) == printable(HOSTILE)  # also where Python or a notebook shows it
    assert "\x1b" not in str(cli.explanation(UserError(f"a file says {HOSTILE}")))
    assert "\x1b" not in str(cli.explanation(FileNotFoundError(2, "none", HOSTILE)))
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=300).print(describe(ByteTokenizer([HOSTILE]), HOSTILE))
    assert "\x1b" not in out.getvalue() and "\u202e" not in out.getvalue()
    event = from_json(Event, {"time": "t", "what": HOSTILE, "text": HOSTILE, "runs_done": 0}, "log")
    assert event.what == event.text == printable(HOSTILE)
