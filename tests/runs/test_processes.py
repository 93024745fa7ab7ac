"""Several processes train one run: process 0 writes, and the numbers are those of one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpt_jax.runs.train import train
from tests.tiny import tiny_config

WORKER = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from rich.console import Console
from gpt_jax import train
from tests.tiny import tiny_config
outcome = train(tiny_config(steps=int(sys.argv[4])), sys.argv[3], console=Console(quiet=True))
assert jax.process_count() == 2 and outcome.status == "finished", outcome
"""


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(tmp_path: Path) -> None:
    environment = dict(os.environ) | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    for steps in (3, 6):  # the second start resumes
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, address, str(i), str(tmp_path / "two"), str(steps)],
                cwd=Path(__file__).parents[2],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(2)
        ]
        for worker in workers:
            _, err = worker.communicate(timeout=300)
            assert worker.returncode == 0, err
    train(tiny_config(steps=3), tmp_path / "one", console=Console(quiet=True))
    train(tiny_config(steps=6), tmp_path / "one", console=Console(quiet=True))
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [(r["step"], r["split"]) for r in one] == [(r["step"], r["split"]) for r in two]
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=1e-5)
