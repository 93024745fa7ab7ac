"""A configuration file is the user's program: what is wrong with it is one sentence that names its line."""

import os
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from experiments import config_file
from gpt_jax.config.errors import ConfigError

CASES = {
    "def (": r"is not Python at line 1 \(invalid syntax\)",
    "a\0b": "is not Python",
    "(" * 3000: "is not Python",
    "\n1/0": r"fails at line 2 \(ZeroDivisionError: division by zero\)",
    "def get_config(): return {}['x']": r"fails at line 1 \(KeyError: 'x'\)",
    "def get_config(): raise ValueError('no')": r"fails at line 1 \(ValueError: no\)",
    "x = 1": "has no attribute 'get_config'",
    "def get_config(which): return which": "missing 1 required positional argument",
    "from gpt_jax.config.errors import ConfigError\ndef get_config(): raise ConfigError('mine')": "^mine$",
}


# ml_collections loads the file with a function that Python will drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")


def parse(path: Path) -> None:
    sys.modules.pop("config_config", None)  # what one file defines stays when another is loaded
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    argv = ["train", f"--config={path}"]
    with config_file.faults(argv):
        values(argv)


@pytest.mark.parametrize("content", CASES)
def test_a_faulty_program_is_one_sentence(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.py"
    file.write_text(content)
    with pytest.raises(ConfigError, match=CASES[content]) as raised:
        parse(file)
    assert "\n" not in str(raised.value) and "Traceback" not in str(raised.value)


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe")
    for name, reason in (("pipe.py", "is not a file but"), ("", "is not a file but"), ("none.py", "does not exist")):
        with pytest.raises(ConfigError, match=reason):
            parse(tmp_path / name)
    with pytest.raises(ConfigError, match="is not Python"):
        parse(tmp_path / "bytes.py")


def test_a_missing_package_and_a_wrong_flag_keep_their_own_answers(tmp_path: Path) -> None:
    file = tmp_path / "config.py"
    file.write_text("import nothing_of_this_name")
    with pytest.raises(ModuleNotFoundError):
        parse(file)
    with pytest.raises(flags.UnrecognizedFlagError), config_file.faults(["train", "--wrong"]):
        flags.FlagValues()(["train", "--wrong"])
