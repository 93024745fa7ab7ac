"""Every file in configs/ is a configuration, also with the arguments that its text names."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from gpt_jax.config import Config
from gpt_jax.conversion import from_config_dict

FOLDER = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(path for path in FOLDER.rglob("*.py") if "def get_config" in path.read_text())
ARMS = [
    (path, arg) for path in FILES for arg in ["", *sorted(set(re.findall(rf"{path.name}:(\w+)", path.read_text())))]
]


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path, arg", ARMS, ids=[f"{path.relative_to(FOLDER)}:{arg}" for path, arg in ARMS])
def test_a_configuration_file_is_one(path: Path, arg: str) -> None:
    module = load(path)
    assert isinstance(from_config_dict(Config, module.get_config(*([arg] if arg else []))), Config)
    assert module.__doc__ and "python -m experiments." in module.__doc__  # its command stands on top


def test_there_are_arguments_among_them() -> None:
    assert ("shakespeare_char.py", "gpt2") in {(path.name, arg) for path, arg in ARMS}
