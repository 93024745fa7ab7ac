"""Evaluates a checkpoint of a run on its validation set or on another text."""

from __future__ import annotations

import dataclasses
import math

from gpt_jax.config import Text, TokenizerFile
from gpt_jax.config.mesh import ALL_DATA
from gpt_jax.data import open_data
from gpt_jax.runs import consensus, record
from gpt_jax.runs.folder import EVALUATION, TOKENIZER, Workdir
from gpt_jax.runs.load import open_run
from gpt_jax.training.evaluate import make_evaluate
from gpt_jax.training.sharding import make_mesh


def evaluate_run(
    workdir: Workdir,
    step: int | None = None,
    text: str | None = None,
    context_length: int | None = None,
    axes: str = ALL_DATA,
) -> tuple[int, dict[str, float | int]]:
    """Evaluates a checkpoint on the whole validation set, writes `evaluation.json`, and returns (step, metrics).

    Args:
      step: the checkpoint's step (None: the newest good one).
      text: a path to evaluate on instead of the run's data; its validation part is used (None: the run's data).
      context_length: the length of a row (None: the model's).
      axes: the mesh over all devices, written as `Config.mesh`.

    Raises:
      ConfigError, MissingFile, UserError: as `load_run`; or the data differs from that of the run.
    """
    mesh = make_mesh(axes=axes)
    opened = open_run(workdir, step, mesh)
    source, length = opened.config.data, opened.config.model.context_length
    tokenizer = TokenizerFile(str(opened.folder.file(TOKENIZER)))  # the run's own copy; the folder may have moved
    if text is not None:
        source = Text(path=text, tokenizer=tokenizer)
    elif isinstance(source, Text) and isinstance(source.tokenizer, TokenizerFile):
        source = dataclasses.replace(source, tokenizer=tokenizer)
    data = open_data(source, length if context_length is None else context_length, opened.config.data_seed)
    if text is None:
        record.check_data(opened.folder, data)
    consensus.check_same(checkpoint=opened.fingerprint)
    result = make_evaluate(opened.model, data, opened.config.evaluation.batch_size, mesh)(opened.params)
    finite = {name: value if math.isfinite(value) else None for name, value in result.items()}
    opened.folder.write_json(EVALUATION, {"step": opened.step, **finite})
    return opened.step, result
