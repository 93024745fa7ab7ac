"""Every file in configs/ is a configuration, also with the arguments that its text names."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from gpt_jax.config import Config
from gpt_jax.config.conversion import from_config_dict
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.init_from import completed
from gpt_jax.runs.record import write_config
from tests.tiny import tiny_config

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, as far as a configuration looks at it."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config(model={"vocab_size": 9})
    write_config(RunFolder(folder), config, config)
    return folder


@pytest.mark.parametrize("path, arg", ARMS, ids=[f"{path.relative_to(FOLDER)}:{arg}" for path, arg in ARMS])
def test_a_configuration_file_is_one(path: Path, arg: str, trained: Path) -> None:
    module = load(path)
    values = module.get_config(*([arg] if arg else []))
    if "layers" not in values.model:  # its model is another run's
        values.init_from = str(trained)
        values = ConfigDict(completed(values.to_dict()))
    assert isinstance(from_config_dict(Config, values), Config)
    assert module.__doc__ and "python -m experiments." in module.__doc__  # its command stands on top


def test_there_are_arguments_among_them() -> None:
    assert ("shakespeare_char.py", "gpt2") in {(path.name, arg) for path, arg in ARMS}
