"""Scores of a run's attention heads while it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gpt_jax.analysis.heads import Table, head_table
from gpt_jax.config import Config
from gpt_jax.config.errors import UserError
from gpt_jax.data import Batch, Data
from gpt_jax.model.gpt import GPT
from gpt_jax.runs.loop import Watch
from gpt_jax.runs.metrics import DIAGNOSTICS
from gpt_jax.training.step import model_arguments

OF_REPEATS = ("duplicate_token", "induction")  # scores of the rows whose tokens repeat
LARGEST = (*OF_REPEATS, "previous_token", "largest_logit")  # of the whole model, the largest head's; else the mean
SEED = 0  # of the tokens that repeat: the same in every run


def watch_heads(config: Config, data: Data, mesh: Mesh) -> list[Watch]:
    """Scores of the heads of a resolved configuration, as `head_scores` defines them; none if it asks for none.

    `blocks/3/attention/entropy/5` is the score of a head, `blocks/3/attention/entropy` the mean over the layer's heads,
    and `entropy` that over all heads; `induction`, `duplicate_token`, `previous_token` and `largest_logit` are those of
    the head that has most. What a mixer does not define is absent. Runs of one model share the programs.
    """
    model, settings = GPT(config.model), config.diagnostics
    if settings.every is None:
        return []
    count = min(settings.rows, data.validation_rows)
    text = Batch._make(None if array is None else array[:, : settings.tokens] for array in next(data.validation(count)))
    repeats = repeated_tokens(count, min(settings.tokens, data.row_length), data.vocab_size)

    def diagnose(params: Any) -> dict[str, float]:
        of_text, of_repeats = (
            head_table(model, params, jnp.asarray(batch.tokens), mesh=mesh, **_arguments(model, batch))
            for batch in (text, repeats)
        )
        return summarize(of_text | {name: of_repeats[name] for name in OF_REPEATS if name in of_repeats})

    asked = {"rows": settings.rows, "tokens": settings.tokens}
    return [Watch(DIAGNOSTICS, "diagnostics", settings.every, asked, diagnose)]


def repeated_tokens(rows: int, tokens: int, vocab_size: int) -> Batch:
    """Rows of random tokens, each twice in a row: the second half repeats the first.

    Raises:
      UserError: there is no room for two tokens that repeat.
    """
    half = tokens // 2
    if half < 2:
        raise UserError(f"rows of {tokens} tokens have no room for two that repeat: leave diagnostics.every at None")
    first = np.random.default_rng(SEED).integers(vocab_size, size=(rows, half), dtype=np.int32)
    whole = np.concatenate([first, first], axis=1)
    return Batch(whole, np.roll(whole, -1, axis=1), np.ones_like(whole, np.float32))


def summarize(table: Table) -> dict[str, float]:
    """The scores of a table by name, those that are defined."""
    if not table:
        return {}
    layers, found = table["layer"], {}
    for score in [name for name in table if name not in ("layer", "head")]:
        values = table[score]
        found[score] = _reduced(np.nanmax if score in LARGEST else np.nanmean, values)
        for layer in np.unique(layers):
            found[f"blocks/{layer}/attention/{score}"] = _reduced(np.nanmean, values[layers == layer])
    for layer, head, *scores in zip(*table.values(), strict=True):
        names = [name for name in table if name not in ("layer", "head")]
        for name, value in zip(names, scores, strict=True):
            found[f"blocks/{layer}/attention/{name}/{head}"] = float(value)
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _reduced(reduce: Callable[..., Any], values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(reduce(known)) if known.size else float("nan")


def _arguments(model: GPT, batch: Batch) -> dict[str, Any]:
    return {
        name: value if value is None else np.asarray(value) for name, value in model_arguments(model, batch).items()
    }
