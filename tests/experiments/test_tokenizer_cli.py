"""`python -m experiments.tokenizer`, as a person and as a script use it."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import tokenizer as command
from gpt_jax.data.tokenizer import END_OF_TEXT, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind to suffer slings and arrows.\n" * 20


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus" / "deep"
    folder.mkdir(parents=True)
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(TEXT)
    return tmp_path


def test_the_whole_way_in_real_processes(corpus: Path) -> None:
    def run(*arguments: str, **more) -> subprocess.CompletedProcess:
        whole = [sys.executable, "-m", "experiments.tokenizer", *arguments]
        return subprocess.run(whole, cwd=ROOT, capture_output=True, **more)

    folder = corpus / "tokens"
    trained = run("train", f"--input={corpus}/corpus/**/*.txt", "--vocab_size=300", f"--output={folder}")
    assert trained.returncode == 0 and b"saved 300 tokens" in trained.stdout and b"100%" in trained.stderr
    text = "Überhaupt not to be 😉\r\n".encode()
    encoded = run("encode", f"--tokenizer={folder}", input=text)
    assert list(map(int, encoded.stdout.split())) == load_tokenizer(folder).encode(text.decode())
    assert run("decode", f"--tokenizer={folder}", input=encoded.stdout).stdout == text
    failed = run("decode", f"--tokenizer={folder}", "300")
    assert failed.returncode == 1 and failed.stdout == b""
    assert failed.stderr.decode() == "error: token id 300 is outside the vocabulary, whose ids are 0 to 299\n"


def test_train_reads_what_it_is_told(corpus: Path, capsys: pytest.CaptureFixture) -> None:
    glob = f"--input={corpus}/corpus/**/a.txt"
    assert command.main(["train", glob, f"--output={corpus}/c", "--kind=characters"]) == 0
    characters = load_tokenizer(corpus / "c")
    assert characters.manifest() == {"characters": "".join(sorted(set(TEXT))), "special_tokens": []}
    arguments = ["train", glob, f"--output={corpus}/b", "--vocab_size=280", "--pattern=gpt2", "--special_tokens", "<a>"]
    assert command.main(arguments) == 0
    assert load_tokenizer(corpus / "b").manifest() == {"pattern": "gpt2", "special_tokens": {"<a>": 279}}
    assert command.main([*arguments[:3], "--vocab_size=270", "--overwrite"]) == 0
    assert load_tokenizer(corpus / "b").special_tokens == {END_OF_TEXT: 269}


def test_special_tokens_are_asked_for(capsys: pytest.CaptureFixture) -> None:
    def encode(*more: str) -> str:
        assert command.main(["encode", "--tokenizer=bytes", f"--text=a{END_OF_TEXT}", *more]) == 0
        return capsys.readouterr().out

    assert encode("--allowed_special=all") == encode(f"--allowed_special={END_OF_TEXT}") == "97 256\n"
    assert encode("--allowed_special=none").startswith("97 60 124")
    assert command.main(["encode", "--tokenizer=bytes", f"--text=a{END_OF_TEXT}"]) == 1
    assert "special token" in capsys.readouterr().err


def test_show_tells_what_it_is_and_how_it_cuts(corpus: Path, capsys: pytest.CaptureFixture) -> None:
    command.main(["train", f"--input={corpus}/corpus/**", f"--output={corpus}/t", "--vocab_size=300"])
    capsys.readouterr()
    assert command.main(["show", f"--tokenizer={corpus}/t", f"--text=to be [/bold] é{END_OF_TEXT}"]) == 0
    page = capsys.readouterr().out
    for expected in ("bpe", "300 tokens", "gpt4", f"{END_OF_TEXT} 299", "[ 91  / 47", r"\xc3 195"):
        assert expected in page
    assert load_tokenizer(corpus / "t").content_hash()[:40] in page
    assert command.main(["show", "--tokenizer=bytes"]) == 0
    assert "The last 20 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--input={0}/none/*", "--output={0}/t", "--vocab_size=300"], "no file matches --input="),
        (["train", "--input={0}/corpus/**", "--output={0}/t"], "--vocab_size is required for bpe"),
        (["train", "--input={0}/corpus/**", "--output={0}/corpus", "--vocab_size=300"], "exists already"),
        (["train", "--input={0}/corpus/**", "--output={0}/t", "--vocab_size=9"], "vocab_size must be at least 257"),
        (["train", "--input={0}/latin", "--output={0}/t", "--vocab_size=300"], "latin is not UTF-8 text"),
        (["train", "--input={0}/empty", "--output={0}/t", "--vocab_size=300"], "no text to train on"),
        (["train", "--input={0}/empty", "--output={0}/t", "--kind=characters"], "at least one character"),
        (["encode", "--tokenizer={0}/missing", "--text=a"], "there is no tokenizer at"),
        (["encode", "--tokenizer={0}/corpus", "--text=a"], "holds no tokenizer"),
        (["encode", "--tokenizer={0}/latin", "--text=a"], "is not a tokenizer"),
        (["encode", "--tokenizer=bytes", "--text=a", "--allowed_special=<x>"], "'<x>' is not a special token"),
        (["decode", "--tokenizer=bytes", "1", "two"], "'two' is not a token id"),
        (["decode", "--tokenizer=bytes", "-1"], "token id -1 is outside the vocabulary"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    corpus: Path, capsys: pytest.CaptureFixture, arguments: list[str], sentence: str
) -> None:
    (corpus / "latin").write_bytes("naïve".encode("latin-1"))
    (corpus / "empty").touch()
    assert command.main([argument.format(corpus) for argument in arguments]) == 1
    told = capsys.readouterr()
    assert told.err.splitlines()[-1].startswith("error: ") and sentence in told.err.splitlines()[-1]
    assert told.err.count("error:") == 1 and "Traceback" not in told.err
    assert not (corpus / "t").exists()


@pytest.mark.parametrize(
    "arguments",
    [[], ["tran"], ["show", "--tokenizer=bytes", "--txt=a"], ["show", "--token=bytes"], ["train", "--vocab_size=x"]],
)
def test_misspelt_commands_are_told_in_one_sentence(capsys: pytest.CaptureFixture, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        command.main(arguments)
    assert exit.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and "--help" in told


@pytest.mark.parametrize("name", ["train", "encode", "decode", "show"])
def test_help_pages_name_every_option(capsys: pytest.CaptureFixture, name: str) -> None:
    for arguments in (["--help"], [name, "--help"]):
        with pytest.raises(SystemExit) as exit:
            command.main(arguments)
        assert exit.value.code == 0
    page = capsys.readouterr().out
    assert f"experiments.tokenizer {name}" in page
    for option in {"train": ("--input", "--output", "--vocab_size", "--pattern", "--kind")}.get(name, ("--tokenizer",)):
        assert option in page
