"""What a run prints before its first step and after its last one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from gpt_jax.analysis.cost import parameter_table, peak_flops, training_flops_per_token
from gpt_jax.config import Config, has_adapter
from gpt_jax.config.errors import UserError
from gpt_jax.data import Data
from gpt_jax.data.tokenizer import Tokenizer
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Sampler
from gpt_jax.model.adapter import is_adapter
from gpt_jax.model.gpt import GPT
from gpt_jax.model.shapes import parameter_shapes
from gpt_jax.runs.display import Display
from gpt_jax.runs.folder import RunFolder
from gpt_jax.runs.goodput import Goodput, describe

SAMPLED_TOKENS = 200


def tokens_per_step(config: Config, data: Data) -> int:
    """Tokens of the global batch of one step, padding included: B · T."""
    return config.train.batch_size * data.row_length


def make_display(console: Console, config: Config, data: Data) -> Display:
    """The display of a run, with the FLOPs of a token and the peak of all devices."""
    peak = peak_flops(jax.devices()[0])
    return Display(
        console,
        config.train.steps,
        tokens_per_step(config, data),
        training_flops_per_token(config.model, data.row_length),
        None if peak is None else peak * jax.device_count(),
    )


def show_banner(
    console: Console,
    folder: RunFolder,
    config: Config,
    data: Data,
    environment: Mapping[str, Any],
    start: int,
    goodput: Goodput,
) -> None:
    """Prints the run's folder, devices, versions, data, number of steps, FLOPs and parameters; of a run that goes on,
    where the time of its earlier starts went.
    """
    this = environment["starts"][-1]
    devices, versions = this["devices"], this["versions"]
    steps, per_step = config.train.steps, tokens_per_step(config, data)
    flops = training_flops_per_token(config.model, data.row_length)
    epochs = "" if data.train_rows is None else f", {steps * config.train.batch_size / data.train_rows:.2f} epochs"
    facts = {
        "folder": str(folder),
        "devices": f"{devices['count']} × {devices['kind']} ({jax.default_backend()})",
        "processes": str(devices["processes"]),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "git": "none" if this["git"] is None else this["git"],
        "data": f"{_tokens(data.train_tokens)} tokens to train on, {data.validation_tokens:,} to validate on",
        "plan": f"{steps:,} steps × {per_step:,} tokens = {steps * per_step:,} tokens{epochs}",
        "cost": f"{flops:,} FLOPs per token, forward and backward; {flops * steps * per_step:.3g} in all",
    }
    if config.init_from is not None:
        began = environment["base"]
        facts["begins with"] = "; ".join([f"{began['folder']}, step {began['step']:,}", *began["changed"]])
    if start:
        facts["resumes"] = f"after step {start:,}"
    if goodput.has_earlier:
        facts["until now"] = describe(goodput.record(start))
    console.print("[bold]gpt_jax[/bold]", highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)
    console.print(parameters_table(config))


def parameters_table(config: Config) -> Table:
    """The model's parameters; layers of the same shapes share one row."""
    rows = parameter_table(parameter_shapes(config.model))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("parameters")
    table.add_column("shape")
    table.add_column("layers", justify="right")
    table.add_column("elements", justify="right")
    for row in rows:
        table.add_row(
            row.path, " × ".join(map(str, row.shape)), str(row.layers) if row.layers > 1 else "", f"{row.count:,}"
        )
    total = sum(row.count for row in rows)
    table.add_row("all", "", "", f"{total:,}", style="bold")
    if has_adapter(config.model):
        trains = sum(row.count for row in rows if is_adapter(row.path))
        table.add_row("that train", "", "", f"{trains:,} ({trains / total:.2%})", style="bold")
    return table


def _tokens(count: int | None) -> str:
    return "endless" if count is None else f"{count:,}"


def show_evaluation(console: Console, step: int, result: Mapping[str, Any]) -> None:
    """Prints the metrics of an evaluation after `step` updates, each with its standard error."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("validation")
    table.add_column("value", justify="right")
    table.add_column("standard error", justify="right")
    for name in ("loss", "perplexity", "bits_per_byte", "accuracy"):
        if name in result:
            table.add_row(name.replace("_", " "), _number(result[name]), _number(result[f"{name}_standard_error"]))
    table.add_row("tokens", f"{result['tokens']:,}", "")
    table.add_row("step", f"{step:,}", "")
    console.print(table)


def sample_text(
    model: GPT, params: Any, tokenizer: Tokenizer, prompt: str, seed: int, new_tokens: int = SAMPLED_TOKENS
) -> str:
    """`prompt` and its continuation, sampled at temperature 0.8: `new_tokens`, or as many as the context has room for.

    Raises:
      UserError: the tokenizer cannot encode the prompt, or the prompt is empty or fills the context.
    """
    ids = tokenizer.encode(prompt)
    room = model.config.context_length - len(ids)
    if not ids or room < 1:
        raise UserError("config.prompt must have at least one token, and fewer than model.context_length")
    generated = generate(
        model,
        params,
        [ids],
        key=jax.random.key(seed),
        max_new_tokens=min(new_tokens, room),
        sampler=Sampler(temperature=0.8),
    )
    return tokenizer.decode([*ids, *generated.tokens[0, : generated.lengths[0]].tolist()])


def show_sample(console: Console, model: GPT, params: Any, tokenizer: Tokenizer, config: Config) -> None:
    """Prints a continuation of `config.prompt`, or why there is none."""
    try:
        text = sample_text(model, params, tokenizer, config.prompt, config.seed)
    except ValueError as error:
        text = f"none: {error}"
    console.rule("sample")
    console.print(text, highlight=False, markup=False)
    console.rule()


def show_end(console: Console, validation: Mapping[str, Any] | None, paths: Mapping[str, str]) -> None:
    """Prints the last evaluation and the paths of the results."""
    if validation is not None:
        show_evaluation(console, validation["step"], validation)
    for name, path in paths.items():
        console.print(f"{name}: {path}", highlight=False, soft_wrap=True)


def show_next(console: Console, commands: Mapping[str, str]) -> None:
    """Prints commands to try next."""
    console.print("next:", highlight=False)
    for name, command in commands.items():
        console.print(f"  # {name}\n  {command}", highlight=False, markup=False, soft_wrap=True)


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"
