"""`experiments.plan` as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = """
from gpt_jax.config import Adamw, Attention, BlockConfig, Config, Copy, Mlp, ModelConfig, Train
from gpt_jax.config.conversion import to_config_dict

def get_config(arg=""):
    block = BlockConfig(Attention(heads=2), Mlp(256))
    model = ModelConfig(None, 128, 128, (block,) * 2, scan=True, dtype="bfloat16")
    return to_config_dict(Config(model, Copy(length=63), Adamw(), Train(steps=100, batch_size=8)))
"""


def command(*args: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    whole = [sys.executable, "-m", "experiments.plan", *args]
    return subprocess.run(whole, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return f"--config={path}"


@pytest.mark.plan
def test_a_plan_is_printed_as_json_and_written_as_a_page(config: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = command(config, "--topology=v5e:2x2", "--config.mesh=fsdp=-1", "--json", "--price=1.2", f"--output={page}")
    assert done.returncode == 0, done.stderr
    (plan,) = json.loads(done.stdout)["forecasts"]
    assert (plan["topology"], plan["mesh"], plan["fits"]) == ("v5e:2x2", {"fsdp": 4}, True)
    assert plan["tokens"] * 100 == plan["total_tokens"] and plan["cost"] > 0
    assert "v5e:2x2" in page.read_text() and done.stderr.strip() == str(page)  # libtpu's log is not shown


@pytest.mark.plan
@pytest.mark.slow
def test_a_search_ranks_ways_and_prints_their_commands(config: str) -> None:
    done = command(config, "--topology=v5e:2x2", "--search", "--tries=3")
    assert done.returncode == 0, done.stderr
    assert "3 ways compiled" in done.stderr
    commands = [line.strip() for line in done.stderr.splitlines() if "python -m experiments.plan" in line]
    assert len(commands) == 3 and all("--search" not in line and "--topology=v5e:2x2" in line for line in commands)
    assert "fits" in done.stdout


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((), 2, "--topology is required"),
        (("--topology=v5e:2x2", "--config=configs/quickstart.py"), 2, "--config.model.vocab_size=N"),
    ],
)
def test_mistakes_get_a_sentence(args: tuple[str, ...], code: int, message: str) -> None:
    done = command(*args)
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr
