"""The command that begins with a trained model, with a configuration that leaves the model to it."""

import json
from pathlib import Path

import pytest

from tests.experiments.test_train_cli import command, place  # noqa: F401 — a fixture

pytestmark = pytest.mark.usefixtures("place")


def test_a_run_is_adapted_by_one_command(place: Path) -> None:  # noqa: F811
    """And sampled, with settings of the model that are the command line's own."""
    first = command(place, "train", f"--config={place / 'tiny.py'}", f"--workdir={place / 'base'}")
    assert first.returncode == 0, first.stderr
    arguments = (
        "--config=configs/finetune.py",
        f"--workdir={place / 'adapted'}",
        f"--config.data.path={place / 'text.txt'}",
        "--config.train.steps=4",
        "--config.model.adapter.rank=2",
        "--config.model.context_length=16",
        "--config.model.remat=full",
    )
    missing = command(place, "train", *arguments)
    assert missing.returncode == 2 and "give --config.init_from=DIR" in missing.stderr
    adapted = command(place, "train", *arguments, f"--config.init_from={place / 'base'}")
    assert adapted.returncode == 0, adapted.stderr
    assert "begins with" in adapted.stdout and "context_length: 32 → 16" in adapted.stdout
    assert "that train" in adapted.stdout and "kv_heads" not in adapted.stdout
    recorded = json.loads((place / "adapted" / "config.json").read_text())["resolved"]
    assert recorded["model"]["remat"] == "full" and recorded["model"]["adapter"]["rank"] == 2
    sampled = command(place, "sample", f"--workdir={place / 'adapted'}", "--prompt=the ", "--max_new_tokens=5")
    assert sampled.returncode == 0 and sampled.stdout.startswith("the ")
