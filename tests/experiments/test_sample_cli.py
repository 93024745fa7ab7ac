"""`experiments.sample` and `experiments.inspect` as people and scripts call them."""

import json
import re
from pathlib import Path

import pytest

from gpt_jax.config import Adamw, Attention, BlockConfig, Bytes, Characters, Config, ModelConfig, Rope, Text, Train
from gpt_jax.config import Mlp as MlpConfig
from gpt_jax.runs.train import train
from tests.experiments.test_train_cli import command, many

CONTEXT = 32


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs: `bytes`, whose tokenizer has an end-of-text token, and `characters`."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    block = BlockConfig(Attention(heads=2, position=Rope()), MlpConfig(32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT_JAX_CACHE", str(folder / "cache"))
        for name, tokenizer in (("bytes", Bytes()), ("characters", Characters())):
            config = Config(
                model=ModelConfig(vocab_size=None, context_length=CONTEXT, width=16, blocks=(block,) * 2),
                data=Text(path=str(folder / "text.txt"), validation_fraction=0.2, tokenizer=tokenizer),
                optimizer=Adamw(),
                train=Train(steps=2, batch_size=4),
            )
            train(config, str(folder / name))
    return folder


def test_the_command_line(place: Path, tmp_path: Path) -> None:
    run, characters = f"--workdir={place / 'bytes'}", f"--workdir={place / 'characters'}"
    text = [characters, "--prompt=the ", "--max_new_tokens=20"]
    lines = {
        "plain": text,
        "again": text,
        "other seed": [*text, "--seed=1"],
        "greedy": [*text, "--temperature=0"],
        "three": [*text, "--num_samples=3", "--temperature=0.8", "--top_k=40", "--top_p=0.9", "--min_p=0.01"],
        "whole context": [characters, "--prompt=the "],
        "slide": [characters, "--prompt=the ", "--max_new_tokens=50", "--slide"],
        "from the start": [run, "--max_new_tokens=8"],
        "bytes": [run, "--prompt=the <|endoftext|>", "--max_new_tokens=8"],
        "help": ["--help"],
        "no workdir": ["--prompt=the "],
        "no folder": ["--workdir=/nowhere/at/all", "--prompt=the "],
        "no prompt": [characters],
        "unknown character": [characters, "--prompt=é"],
        "too long": [characters, "--prompt=the ", "--max_new_tokens=29"],
        "cold": [characters, "--prompt=the ", "--temperature=-1"],
        "top_k": [characters, "--prompt=the ", "--top_k=0"],
        "top_p": [characters, "--prompt=the ", "--top_p=2"],
        "samples": [characters, "--prompt=the ", "--num_samples=0"],
        "word": [*text, "--top_k=many"],
        "typo": [*text, "--temprature=1"],
    }
    results = dict(zip(lines, many(place, tmp_path / "out", "sample", list(lines.values())), strict=True))
    good = list(lines)[: list(lines).index("no workdir")]
    for name in good:
        code, _, error = results[name]
        assert code == 0 and "Traceback" not in error, (name, error)
    out = {name: results[name][1] for name in good}

    assert re.fullmatch(r"the [a-z \n]{20}\n", out["plain"])
    assert out["plain"] == out["again"] != out["other seed"]
    assert re.fullmatch(r"the [a-z \n]{20}\n", out["greedy"])
    samples = re.split(r"─+ \d\n", out["three"])
    assert len(samples) == 3 and all(re.fullmatch(r"the [a-z \n]{20}\n", sample) for sample in samples)
    assert len(out["whole context"]) == CONTEXT + 1 and len(out["slide"]) == 4 + 50 + 1
    assert out["bytes"].startswith("the <|endoftext|>")
    for flag in (
        "workdir",
        "prompt",
        "max_new_tokens",
        "slide",
        "num_samples",
        "seed",
        "temperature",
        "top_k",
        "min_p",
    ):
        assert f"--{flag}" in out["help"]

    for name, code, message in [
        ("no workdir", 2, "--workdir is required"),
        ("no folder", 1, "/nowhere/at/all"),
        ("no prompt", 2, "--prompt is required"),
        ("unknown character", 1, "é"),
        ("too long", 1, "a prompt of 4 tokens and 29 new ones exceed the context length of 32"),
        ("cold", 1, "temperature must be 0"),
        ("top_k", 1, "top_k must be a whole number of at least 1"),
        ("top_p", 1, "top_p must lie in"),
        ("samples", 2, "num_samples"),
        ("word", 2, "top_k"),
        ("typo", 2, "temperature"),
    ]:
        actual, printed, error = results[name]
        assert (actual, printed) == (code, ""), (name, actual, printed, error)
        assert message in error and len(error.splitlines()) == 1 and "Traceback" not in error, (name, error)


def test_a_process_of_its_own(place: Path) -> None:
    arguments = f"--workdir={place / 'characters'}", "--prompt=the ", "--max_new_tokens=5"
    done = command(place, "sample", *arguments)
    assert done.returncode == 0 and re.fullmatch(r"the [a-z \n]{5}\n", done.stdout), done.stderr


def test_the_page_shows_what_sample_prints(place: Path, tmp_path: Path) -> None:
    run, characters = f"--workdir={place / 'bytes'}", f"--workdir={place / 'characters'}"
    text, page = "--prompt=the </script>", f"--out={tmp_path / 'page.html'}"
    greedy = many(
        place, tmp_path / "sample", "sample", [[run, text, "--max_new_tokens=6", "--temperature=0"], ["--help"]]
    )
    lines = {
        "two arms": [run, run, text, "--tokens=6", page],
        "help": ["--help"],
        "no workdir": [text, page],
        "no page": [run, text],
        "both": [run, text, page, "--serve"],
        "three": [run, run, run, text, page],
        "tokenizers": [run, characters, "--prompt=the ", page],
        "no prompt": [characters, page],
        "too long": [run, f"--prompt={'x' * 33}", page],
        "too many": [run, text, "--tokens=64", page],
        "folder": [run, text, "--tokens=0", f"--out={tmp_path / 'none' / 'page.html'}"],
    }
    results = dict(zip(lines, many(place, tmp_path / "out", "inspect", list(lines.values())), strict=True))
    code, printed, error = results["two arms"]
    assert code == 0 and re.fullmatch(r".*page\.html  0\.\d MB\n", printed), error
    source = (tmp_path / "page.html").read_text("utf-8")
    (data,) = re.findall(r'<script type="application/json" id="walk">(.*?)</script>', source)
    arms = json.loads(data)
    assert len(arms) == 2 and arms[0]["tokens"] == arms[1]["tokens"]
    pieces = [bytes(token["bytes"]) for token in arms[0]["tokens"]]
    assert greedy[0][0] == 0 and b"".join(pieces).decode("utf-8", "replace") + "\n" == greedy[0][1]
    assert "&lt;/script&gt;" in source
    for flag in ("workdir", "prompt", "tokens", "out", "serve", "port"):
        assert f"--{flag}" in results["help"][1]
    for name, code, message in [
        ("no workdir", 2, "--workdir is required"),
        ("no page", 2, "give either --out"),
        ("both", 2, "give either --out"),
        ("three", 2, "--workdir was given 3 times"),
        ("tokenizers", 1, "differ: two arms must read the same tokens"),
        ("no prompt", 2, "--prompt is required"),
        ("too long", 1, "a prompt has from 1 to 32 tokens, and this one has 33"),
        ("too many", 1, "from 0 to 63 new tokens"),
        ("folder", 1, "page.html"),
    ]:
        actual, printed, error = results[name]
        assert (actual, printed) == (code, ""), (name, actual, printed, error)
        assert message in error and len(error.splitlines()) == 1 and "Traceback" not in error, (name, error)
