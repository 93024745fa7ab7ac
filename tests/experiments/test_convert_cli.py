"""`experiments.convert`, and what works on the run that it writes: loading, sampling, conversations, evaluation."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gpt_jax.interop.hf import load_pretrained
from gpt_jax.runs.evaluate import evaluate_run
from gpt_jax.runs.load import load_run
from tests.experiments.test_train_cli import ROOT, environment, many
from tests.interop.gguf_files import BPE, TEXT, tensors, write


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write(folder / "model.gguf", tensors())
    write(folder / "mute.gguf", tensors(), tokenizer=False)
    (folder / "text.txt").write_text(TEXT * 20)
    return folder


def test_in_and_out_and_all_that_works_on_it(place: Path, tmp_path: Path) -> None:
    gguf, run, hf = place / "model.gguf", place / "run", place / "hf"
    convert = {
        "in": [f"--from={gguf}", f"--workdir={run}", f"--data={place / 'text.txt'}"],
        "again": [f"--from={gguf}", f"--workdir={run}"],
        "out": [f"--workdir={run}", f"--to={hf}"],
        "both": [f"--from={gguf}", f"--workdir={run}", f"--to={hf}"],
        "no tokenizer": [f"--from={place / 'mute.gguf'}", f"--workdir={place / 'other'}"],
        "absent": ["--from=org/name", f"--workdir={place / 'other'}"],
        "family": [f"--workdir={run}", f"--to={place / 'x'}", "--family=gpt2"],
    }
    results = dict(zip(convert, many(place, tmp_path / "convert", "convert", list(convert.values())), strict=True))
    for name, code, message in [
        ("again", 1, "holds a run already"),
        ("both", 2, "either --from=PATH"),
        ("no tokenizer", 2, "--tokenizer=PATH"),
        ("absent", 1, "hf download org/name"),
        ("family", 2, "gpt2 cannot represent this model"),
    ]:
        actual, _, error = results[name]
        assert actual == code and message in error and len(error.splitlines()) == 1, (name, results[name])
    assert results["in"][0] == 0 and "--chat" in results["in"][1], results["in"]
    assert results["out"][0] == 0, results["out"]

    model, params, tokenizer = load_run(run)
    original, theirs, _ = load_pretrained(gguf)
    assert model.config == original.config and tokenizer.chats
    jax.tree.map(np.testing.assert_array_equal, params, theirs)
    back, ours, written = load_pretrained(hf)
    assert back.config == model.config and written is not None
    jax.tree.map(np.testing.assert_array_equal, ours, params)
    assert written.stop == tokenizer.stop and written.encode(TEXT) == tokenizer.encode(TEXT)

    loss = evaluate_run(run)[1]["loss"]
    assert np.isfinite(loss)
    run.rename(place / "moved")
    assert evaluate_run(place / "moved")[1]["loss"] == loss
    (place / "others.txt").write_text("fox " * 300)
    other = evaluate_run(place / "moved", text=str(place / "others.txt"), context_length=16)[1]
    assert other["loss"] != loss and json.loads((place / "moved" / "evaluation.json").read_text())["step"] == 0

    lines = {
        "said": ["--chat", "--prompt=fox", "--max_new_tokens=5", "--temperature=0"],
        "text": ["--prompt=fox", "--max_new_tokens=5", "--temperature=0"],
        "told": ["--chat", "--prompt=fox", "--max_new_tokens=5", "--temperature=0", "--system=the lazy dog"],
    }
    work = [[f"--workdir={place / 'moved'}", *line] for line in lines.values()]
    said = dict(zip(lines, many(place, tmp_path / "sample", "sample", work), strict=True))
    assert all(code == 0 for code, _, _ in said.values()), said
    assert not said["said"][1].startswith("fox") and said["text"][1].startswith("fox")

    talk = [sys.executable, "-m", "experiments.sample", f"--workdir={place / 'moved'}", "--chat", "--temperature=0"]
    done = subprocess.run(
        [*talk, "--max_new_tokens=5"], cwd=ROOT, env=environment(place) | os.environ, input="fox\n\ndog\n/quit\nno\n",
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(said["said"][1]) and len(done.stdout) > len(said["said"][1])


def test_hostile_files_are_answered_in_one_line(place: Path, tmp_path: Path) -> None:
    claims = b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"a" + struct.pack("<I", 2**32 - 1)
    files = {"claims.gguf": claims, "longer.gguf": (place / "model.gguf").read_bytes() + bytes(64)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.gguf")
    llama = ROOT / "tests" / "interop" / "fixtures" / "llama"
    settings = json.loads((llama / "config.json").read_text())
    negative = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}).encode()
    outside = {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "../x"}}).encode()}
    folders: dict[str, tuple[dict[str, Any], dict[str, bytes]]] = {
        "layers": (settings | {"num_hidden_layers": 10**9}, {}),
        "eps": (settings | {"rms_norm_eps": float("inf")}, {}),
        "start": (settings, {"model.safetensors": len(negative).to_bytes(8, "little") + negative}),
        "outside": (settings, outside),
    }
    for name, (values, others) in folders.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values))
        (tmp_path / name / "tokenizer.json").write_text(BPE.to_hugging_face().to_str())
        for file, content in (others or {"model.safetensors": (llama / "model.safetensors").read_bytes()}).items():
            (tmp_path / name / file).write_bytes(content)
    wanted = {
        "claims.gguf": (1, "cannot follow"),
        "longer.gguf": (1, "bytes follow its last tensor"),
        "pipe.gguf": (1, "is not a file but"),
        "layers": (2, '"num_hidden_layers": 1000000000'),
        "eps": (2, '"rms_norm_eps" is inf'),
        "start": (1, "differ in size"),
        "outside": (1, "outside of it"),
    }
    lines = [[f"--from={tmp_path / name}", f"--workdir={tmp_path / 'run'}"] for name in wanted]
    for name, (code, out, error) in zip(wanted, many(place, tmp_path / "out", "convert", lines), strict=True):
        assert (code, out) == (wanted[name][0], "") and wanted[name][1] in error, (name, code, out, error)
        assert len(error.splitlines()) == 1, error
    assert not (tmp_path / "run").exists()


def test_a_run_of_ones_own_goes_out(place: Path, tmp_path: Path) -> None:
    """And `--chat` without a template is refused."""
    from gpt_jax.config import Adamw, Attention, BlockConfig, Config, GatedMlp, ModelConfig, Rope, Text, Train
    from gpt_jax.runs.train import train

    block = BlockConfig(Attention(heads=2, position=Rope()), GatedMlp(32))
    model = ModelConfig(None, 32, 16, (block,) * 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT_JAX_CACHE", str(place / "cache"))
        data = Text(path=str(place / "text.txt"), validation_fraction=0.2)
        train(Config(model, data, Adamw(), Train(steps=2, batch_size=4)), str(tmp_path / "run"))
    code, _, error = many(
        place, tmp_path / "a", "convert", [[f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'hf'}"]]
    )[0]
    assert code == 0, error
    model, params, tokenizer = load_pretrained(tmp_path / "hf")
    jax.tree.map(np.testing.assert_array_equal, params, load_run(tmp_path / "run")[1])
    assert tokenizer is not None and tokenizer.encode("é") == [0xC3, 0xA9] and tokenizer.stop == [256]
    code, _, error = many(place, tmp_path / "b", "sample", [[f"--workdir={tmp_path / 'run'}", "--chat", "--prompt=a"]])[
        0
    ]
    assert code == 2 and "--chat needs a tokenizer with a chat template" in error
