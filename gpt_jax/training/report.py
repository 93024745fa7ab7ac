"""What a run says about itself before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from gpt_jax.config import Config
from gpt_jax.data import Data
from gpt_jax.training.progress import Display
from gpt_jax.training.storage import RunFolder


def tokens_per_step(config: Config, data: Data) -> int:
    """Places for tokens in the global batch of one step, B · T."""
    return config.train.batch_size * data.row_length


def make_display(console: Console, config: Config, data: Data) -> Display:
    """The display of a run, which knows what its tokens cost and what the devices can do."""
    return Display(console, config.train.steps, tokens_per_step(config, data), None, None)


def show_banner(
    console: Console, folder: RunFolder, config: Config, data: Data, environment: Mapping[str, Any], start: int
) -> None:
    """Prints where a run is, on what, with which versions and data, how large the model is and what it will cost."""
    this = environment["starts"][-1]
    devices, versions = this["devices"], this["versions"]
    steps, per_step = config.train.steps, tokens_per_step(config, data)
    epochs = "" if data.train_rows is None else f", {steps * config.train.batch_size / data.train_rows:.2f} epochs"
    facts = {
        "folder": str(folder),
        "devices": f"{devices['count']} × {devices['kind']} ({jax.default_backend()}), {devices['processes']} process(es)",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "git": "none" if this["git"] is None else this["git"],
        "data": f"{_tokens(data.train_tokens)} training tokens, {data.validation_tokens:,} validation tokens, vocabulary {data.vocab_size:,}",
        "plan": f"{steps:,} steps × {per_step:,} tokens = {steps * per_step:,} tokens{epochs}",
    }
    if start:
        facts["resumes"] = f"after step {start:,}"
    console.print("[bold]gpt_jax[/bold]", highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)


def _tokens(count: int | None) -> str:
    return "endless" if count is None else f"{count:,}"
