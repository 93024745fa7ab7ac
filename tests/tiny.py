"""The smallest run that is one, for tests."""

import dataclasses
from typing import Any

from gpt_jax.config import (
    Adamw,
    Attention,
    BlockConfig,
    Checkpoint,
    Config,
    Copy,
    Evaluation,
    Mlp,
    ModelConfig,
    Rope,
    Train,
)


def tiny_config(steps: int = 6, model: dict[str, Any] | None = None, **changes: Any) -> Config:
    """Two layers of width 16 that learn to copy; `changes` replace fields of the configuration, `model` those of the model."""
    block = BlockConfig(Attention(heads=2, position=Rope()), Mlp(32))
    config = Config(
        model=ModelConfig(vocab_size=None, context_length=16, width=16, blocks=(block,) * 2),
        data=Copy(symbols=8, length=4, validation_rows=10),
        optimizer=Adamw(learning_rate=1e-2),
        train=Train(steps=steps, batch_size=8),
        evaluation=Evaluation(every=4, batch_size=8),
        checkpoint=Checkpoint(every=2),
    )
    config = dataclasses.replace(config, **changes)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **(model or {})))
