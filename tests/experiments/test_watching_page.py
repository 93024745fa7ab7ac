"""The commands of docs/watching.md set what there is, and its table and lines are those of a run."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from experiments.benchmark import SUITES
from gpt_jax.config import Config
from gpt_jax.config.conversion import from_config_dict, to_config_dict, to_dict
from gpt_jax.runs import goodput, watchdog
from gpt_jax.runs.folder import HANGS, METRICS
from tests.tiny import tiny_config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "watching.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").strip().split("\n")
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[2:])[:60])
def test_each_command_names_what_there_is(command: list[str]) -> None:
    """Settings are converted as the command line does it, from a small configuration."""
    module = command[2]
    if module == "experiments.train":
        flags = dict(word.removeprefix("--").split("=", 1) for word in command[3:])
        assert (ROOT / flags.pop("config")).is_file() and flags.pop("workdir").startswith("runs/")
        values, given = to_config_dict(tiny_config()), {}
        for key, text in flags.items():
            name = key.removeprefix("config.")
            value = ast.literal_eval(text) if re.fullmatch(r"[\d.]+|True|False", text) else text
            *groups, last = name.split(".")
            group = values
            for part in groups:
                group = group[part]
            with group.unlocked(), group.ignore_type():
                group[last] = value
            given[name] = value
        config = from_config_dict(Config, values, given)
        assert to_dict(config) != to_dict(tiny_config())
    elif module == "experiments.benchmark":
        assert command[3].removeprefix("--suite=") in SUITES
    else:
        assert command == ["grep", goodput.GOODPUT, f"runs/quickstart/{METRICS}", "|", "tail", "-n", "1"]


def test_the_page_says_what_the_code_does() -> None:
    for phase in goodput.PHASES:
        assert f"`{phase}`" in PAGE, phase
    assert f"exit code {watchdog.HUNG}" in PAGE and f"`{HANGS}/`" in PAGE
    assert watchdog.GRACE_SECONDS == 10 and goodput.RECORD_SECONDS == 5  # "ten seconds", "every five seconds"
    dog, skip = tiny_config().watchdog, Config.__dataclass_fields__["recompute_every"].default
    assert (dog.factor, dog.floor_seconds, dog.pause_seconds, dog.abort, skip) == (20.0, 300.0, 3600.0, False, None)
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        compile(block, "page", "exec")
