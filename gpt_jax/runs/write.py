"""Writes a model from elsewhere as a run, so that everything that opens runs can open it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gpt_jax.config import Adamw, Config, Evaluation, Text, TokenizerFile, Train
from gpt_jax.config.errors import UserError
from gpt_jax.data.tokenizer import Tokenizer
from gpt_jax.model.gpt import GPT
from gpt_jax.model.stack import canonical
from gpt_jax.runs import record
from gpt_jax.runs.checkpoint import Checkpoints
from gpt_jax.runs.folder import ENVIRONMENT, TOKENIZER, RunFolder, Workdir


def write_run(
    workdir: Workdir,
    model: GPT,
    params: Any,
    tokenizer: Tokenizer,
    *,
    text: str | None = None,
    source: str = "",
    source_hashes: Mapping[str, str] | None = None,
) -> None:
    """Writes a model as a run of no steps, which `load_run`, sampling, evaluation and `init_from` open.

    Args:
      text: the path of the text that the run is evaluated on (None: the corpus "python").
      source: where the model is from, for the record.
      source_hashes: the SHA-256 of each of its files there, for the record.

    Raises:
      UserError: the folder holds a run already, or the tokenizer has ids that the model lacks.
    """
    folder, size = RunFolder(workdir), model.config.vocab_size
    assert size is not None
    if tokenizer.vocab_size > size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids and the model {size}: they don't belong together"
        )
    with folder.lock():
        if record.recorded(folder) is not None or record.has_progress(folder):
            raise UserError(f"{folder} holds a run already: choose another --workdir, or delete it")
        tokenizer.save(folder.file(TOKENIZER))
        data = Text(path=text, tokenizer=TokenizerFile(str(folder.file(TOKENIZER))))
        config = Config(model.config, data, Adamw(), Train(steps=1, batch_size=1), evaluation=Evaluation(batch_size=1))
        hashes = {
            "data": None,
            "tokenizer": tokenizer.content_hash(),
        }  # trained elsewhere
        began = {"id": uuid.uuid4().hex[:12], "hashes": hashes, "starts": [], "source": source}
        folder.write_json(ENVIRONMENT, began | {"source_hashes": dict(source_hashes or {})})
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(0, canonical(params), {"step": jnp.asarray(np.int32(0))}, {"step": 0}, None)
        record.write_config(folder, config, config)  # last, since a folder with a configuration is a complete run
