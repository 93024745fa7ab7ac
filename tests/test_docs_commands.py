"""Every command in README and docs/ is one that its program accepts: flags, values, configurations and settings."""

import ast
import re
import shlex
import sys
from pathlib import Path
from unittest import mock

import pytest
from absl import flags
from ml_collections import config_flags

from gpt_jax.config import Config
from gpt_jax.config.conversion import from_config_dict
from tests.test_docs import PAGES, ROOT

# of ml_collections, which loads configuration files so
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
EXPERIMENTS = ROOT / "experiments"
FENCE = re.compile(r"^( *)```(?:sh|bash)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^ {4}(python -m experiments\.\w+ .*)$", re.MULTILINE)  # the reports of studies
OTHERS = {"gcloud", "grep", "hf", "pip", "zensical", "export"}  # what the pages use beside gpt_jax
ACTIONS = ("status", "logs", "stop", "list")


def commands(page: Path) -> list[list[str]]:
    """The words of each line of the page's shell blocks, without comments and variables before it."""
    text = page.read_text("utf-8")
    blocks = [block for _, block in FENCE.findall(text)] + INDENTED.findall(text)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").split("\n")]
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words]


ALL = sorted({tuple(words) for page in PAGES for words in commands(page)})


def defined(program: str) -> flags.FlagValues:
    """The flags that a program defines, read from its source: the modules of programs share names, so that one process
    cannot import them all.
    """
    values = flags.FlagValues()
    source = EXPERIMENTS / (f"{program}.py" if program != "launch" else "launch/command_line.py")
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr == "define_config":
            config_flags.DEFINE_config_file("config", None, "", values, accept_new_attributes=True, lock_config=False)
        elif node.func.attr == "define_processes":
            for name in ("coordinator", "num_processes", "process_id", "start_timeout"):
                flags.DEFINE_string(name, None, "", values)
        elif node.func.attr.startswith("DEFINE_"):
            define, name = getattr(flags, node.func.attr), ast.literal_eval(node.args[0])
            given = [ast.literal_eval(arg) for arg in node.args[2:-1] if isinstance(arg, ast.List | ast.Tuple)]
            if node.func.attr == "DEFINE_enum" and not given:  # its choices are a table of the program
                choice = re.findall(rf"--{name}=([\w|]+)", source.read_text("utf-8"))
                given = [sorted({word for words in choice for word in words.split("|")} | {*targets(source)})]
            short = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg == "short_name"}
            define(name, None, *given, "", flag_values=values, **short)
    return values


def targets(source: Path) -> tuple[str, ...]:
    return ("tpu", "skypilot", "slurm", "local") if source.parent.name == "launch" else ()


def parse(program: str, words: list[str]) -> flags.FlagValues:
    """Parses as `experiments.cli` does: `--flag A B` of some flags, a first word without a name, settings of None."""
    source = (EXPERIMENTS / f"{program}.py").read_text("utf-8") if program != "launch" else ""
    if (first := re.search(r'cli\.run\(.*first="(\w+)"', source)) and not words[0].startswith("-"):
        words = [f"--{first[1]}={words[0]}", *words[1:]]
    if several := re.search(r'cli\.run\(.*several="(\w+)"', source):
        for at, word in enumerate(words):
            if word == f"--{several[1]}":
                rest = iter(words[at + 1 :])
                words = [*words[:at], *(w if w.startswith("-") else f"--{several[1]}={w}" for w in rest)]
                break
    values = defined(program)
    argv = [program, *(word for word in words if not re.fullmatch(r"--config\.[\w.]+=None", word))]
    with mock.patch.object(sys, "argv", argv):  # from which ml_collections takes the settings
        left = values(argv)
    assert left == [program], f"{left[1:]} are no flags"
    return values


def check_config(values: flags.FlagValues, words: list[str]) -> None:
    """The file exists and its configuration, with the command's settings, is valid."""
    flag = values["config"]
    if not flag.present:
        assert not any(word.startswith("--config.") for word in words)
        return
    if flag.config_filename.startswith("configs/finetune.py"):  # it takes its model from a run that is not here
        assert {word.split("=")[0] for word in words} >= {"--config.init_from"}
        return
    off = [word.removeprefix("--config.").removesuffix("=None") for word in words if word.endswith("=None")]
    changed = dict(config_flags.get_override_values(flag)) | dict.fromkeys(off)
    for key in off:
        *groups, name = key.split(".")
        group = values.config
        for part in groups:
            group = group[part]
        with group.ignore_type():
            group[name] = None
    assert isinstance(from_config_dict(Config, values.config, changed), Config)


@pytest.mark.parametrize("command", ALL, ids=lambda words: " ".join(words)[:70])
def test_each_command_is_accepted(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = list(command)
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if "-m" not in words:
        assert words[0] in OTHERS, f"{words[0]} is no command that the pages may use"
        return
    if words[0] == "python3":  # README's two lines: tests/test_packaging.py
        return
    assert "python" in words
    check(words[words.index("python") :])


def check(words: list[str]) -> None:
    """Checks `python -m experiments.NAME …`, and for a launch the command after `--` too."""
    assert words[:2] == ["python", "-m"]
    package, _, program = words[2].partition(".")
    if package != "experiments":
        assert (ROOT / Path(*words[2].split("."))).with_suffix(".py").is_file()
        return
    rest = words[3:]
    if program in ("tokenizer", "harness"):  # argparse, and the harness's own options
        source = (EXPERIMENTS / f"{program}.py").read_text("utf-8")
        assert all(
            re.search(rf'(^  |"){name}\b', source, re.MULTILINE) for name in re.findall(r"--\w+", " ".join(rest))
        )
        return
    if program == "launch":
        if "--" in rest:
            at = rest.index("--")
            check(rest[at + 1 :])
            rest = rest[:at]
        if rest[0] in ACTIONS:
            rest = [word for word in rest[1:] if word.startswith("-")]
    values = parse(program, rest)
    if "config" in values:
        check_config(values, rest)


def test_a_wrong_command_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    quickstart = "python -m experiments.train --config=configs/quickstart.py --workdir=runs/x"
    check(shlex.split(quickstart))
    for wrong in ("--nosuch=1", "--config.model.nosuch=1", "--config.model.attention.kv_heads=3", "word", "--resume=7"):
        with pytest.raises((flags.Error, ValueError, AssertionError, KeyError)):
            check([*shlex.split(quickstart), wrong])
    with pytest.raises(flags.Error):
        check(shlex.split("python -m experiments.benchmark --suite=nosuch"))


INLINE = sorted({text for page in PAGES for text in re.findall(r"`(--config\.[^`]+)`", page.read_text("utf-8"))})
# `B` is a letter of a pattern that the configuration at hand may not have; `DIR` and `N` stand for what a user gives.
PLACEHOLDERS = {
    "--config.model.letters.B.attention.mask.size=128",
    "--config.init_from=DIR",
    "--config.init_from=runs/smollm2",
}


@pytest.mark.parametrize("text", [text for text in INLINE if text not in PLACEHOLDERS])
def test_each_setting_in_a_sentence_is_one(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = [re.sub(r"=(N|FILE)\b", "=100", word) for word in shlex.split(text)]
    words = [word if "=" in word or word == "…" else f"{word}=100" for word in words]
    check(shlex.split("python -m experiments.train --config=configs/quickstart.py --workdir=runs/x") + words)
