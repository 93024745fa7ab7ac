"""The code of docs/look_inside.md runs, and its table names the taps that there are."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import gpt_jax
from gpt_jax import GPT
from gpt_jax.config import (
    Attention,
    BlockConfig,
    Delta,
    Diagnostics,
    ElementwiseGate,
    GatedMlp,
    Latent,
    ModelConfig,
    Rope,
)
from gpt_jax.data.tokenizer import ByteTokenizer
from gpt_jax.model.paths import matches

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "look_inside.md").read_text(encoding="utf-8")


def test_the_code_runs_as_it_stands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    block = BlockConfig(Attention(2, position=Rope()), GatedMlp(16))
    tokenizer = ByteTokenizer()
    model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, context_length=32, width=16, blocks=(block,) * 2))
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    monkeypatch.setattr(gpt_jax, "load_run", lambda folder: (model, params, tokenizer))
    place: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "docs/look_inside.md", "exec"), place)
    assert "blocks/1/attention/heads [" in capsys.readouterr().out
    assert place["effects"].keys() == place["guess"].keys() == {"blocks/0/output", "blocks/1/output"}


def test_the_commands_and_limits_of_the_page_are_those_there_are() -> None:
    from gpt_jax.analysis import walkthrough
    from gpt_jax.analysis.walkthrough_layer import Limits

    root, limits = Path(__file__).resolve().parents[2], Limits()
    commands = re.findall(r"```sh\npython -m experiments\.(\w+) (.*?)```", PAGE, re.DOTALL)
    assert [name for name, _ in commands] == ["train", "inspect", "inspect", "report", "inspect", "benchmark"]
    for name, flags in commands:
        helped = (root / "experiments" / f"{name}.py").read_text("utf-8")
        assert all(re.search(rf"^  {flag}[=. ]", helped, re.MULTILINE) for flag in re.findall(r"--\w+", flags))
    knobs = re.findall(r"--config\.diagnostics\.(\w+)", PAGE)
    assert {*knobs} == {field.name for field in dataclasses.fields(Diagnostics)}
    assert f"({Diagnostics().rows} rows of {Diagnostics().tokens} tokens)" in PAGE
    said = f"the last {limits.positions} tokens, up to {limits.layers} layers and {limits.heads} heads of each"
    assert said.replace(" and ", "\nand ") in PAGE and f"past {limits.bytes / 1e6:g} MB" in PAGE
    assert f"{walkthrough.WHOLE_LOGITS:,}" in PAGE and f"the {walkthrough.KEPT_LOGITS:,} likeliest" in PAGE
    logits = 4 * max(walkthrough.WHOLE_LOGITS, 2 * walkthrough.KEPT_LOGITS * limits.positions)
    assert 4 / 3 * (limits.bytes + 2 * logits) < 14.9e6, "base64 of what two arms embed at most"


def test_the_table_names_every_tap_and_no_other() -> None:
    from gpt_jax.analysis.capture import tap_shapes

    mixers = (Attention(2, gate=ElementwiseGate(), forget_gate=True), Latent(2, 4, 4, 2), Delta(2))
    blocks = tuple(BlockConfig(mixer, GatedMlp(16)) for mixer in mixers)
    model = GPT(ModelConfig(vocab_size=8, context_length=8, width=8, blocks=blocks))
    tokens = jnp.zeros((1, 4), jnp.int32)
    names = set(tap_shapes(model, jax.eval_shape(model.init, jax.random.key(0), tokens), tokens))
    globs = []
    for row in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE):
        first, *others = re.findall(r"`([^`]+)`", row)
        folder = (
            "/".join(first.split("/")[:3]) + "/"
            if first.startswith(("blocks/*/attention/", "blocks/*/mlp/"))
            else ("blocks/*/" if first.startswith("blocks/") else "")
        )
        globs += [first, *(folder + other for other in others)]
    unnamed = {name for name in names if not matches(name, globs)}
    assert not unnamed
    assert not [glob for glob in globs if not any(matches(name, [glob]) for name in names)]
