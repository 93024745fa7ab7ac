"""Evaluates a checkpoint of a run."""

from __future__ import annotations

import dataclasses
import math

from gpt_jax.config import Text, TokenizerFile
from gpt_jax.data import open_data
from gpt_jax.runs import record
from gpt_jax.runs.folder import EVALUATION, TOKENIZER
from gpt_jax.runs.load import Workdir, open_run
from gpt_jax.training.evaluate import make_evaluate
from gpt_jax.training.sharding import make_mesh, replicate


def evaluate_run(
    workdir: Workdir, step: int | None = None, text: str | None = None, context_length: int | None = None
) -> tuple[int, dict[str, float | int]]:
    """Evaluates a checkpoint on the run's whole validation set, writes `evaluation.json`, and returns (step, metrics).

    `text` is a path to evaluate on in place of the run's own data, on the part that training would hold out;
    `context_length` is the length of a row, in place of the model's.

    Raises:
      FileNotFoundError, ValueError: as `load_run`; or the data is not what the run was trained on.
    """
    opened = open_run(workdir, step)
    source, length = opened.config.data, opened.config.model.context_length
    tokenizer = TokenizerFile(str(opened.folder.file(TOKENIZER)))  # the run's own copy, wherever the folder is now
    if text is not None:
        source = Text(path=text, tokenizer=tokenizer)
    elif isinstance(source, Text) and isinstance(source.tokenizer, TokenizerFile):
        source = dataclasses.replace(source, tokenizer=tokenizer)
    data = open_data(source, length if context_length is None else context_length, opened.config.data_seed)
    if text is None:
        record.check_data(opened.folder, data)
    mesh = make_mesh()
    result = make_evaluate(opened.model, data, opened.config.evaluation.batch_size, mesh)(
        replicate(opened.params, mesh)
    )
    finite = {name: value if math.isfinite(value) else None for name, value in result.items()}
    opened.folder.write_json(EVALUATION, {"step": opened.step, **finite})
    return opened.step, result
