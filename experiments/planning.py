"""The forecasts that `experiments.plan` asks for."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from rich.console import Console

from experiments import cli
from gpt_jax.analysis.forecast import Forecast
from gpt_jax.analysis.plan import plan_train_step
from gpt_jax.analysis.plan_decode import plan_decode
from gpt_jax.analysis.plan_text import show_tries
from gpt_jax.analysis.search import search
from gpt_jax.config import Config


def forecasts_of(config: Config, topology: str, flags: Any) -> list[Forecast]:
    """The forecasts of one slice; with `--search`, that of the fastest way, after all ways on standard error.

    Raises:
      UsageError: `--search` together with `--target=decode`.
    """
    if flags.target == "decode":
        if flags.search:
            raise cli.UsageError("--search is for the train step: leave out --target=decode")
        return plan_decode(config, topology, flags.price, flags.rows, flags.prompt_tokens, flags.new_tokens)
    if not flags.search:
        return [plan_train_step(config, topology, flags.price)]
    told = partial(print, file=sys.stderr, flush=True)
    tries, left = search(config, topology, flags.price, flags.tries, told)
    commands = [cli.command(*way.flags, without=("--search", "--tries")) for way in tries]
    show_tries(Console(stderr=True), topology, tries, commands, left)
    return [way.forecast for way in tries if way.forecast is not None][:1]
