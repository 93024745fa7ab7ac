"""What other rooms ask of a model's configuration."""

from __future__ import annotations

from gpt_jax.config.errors import UserError
from gpt_jax.config.model import ModelConfig, learned_positions
from gpt_jax.config.position import DynamicNtk, LongRope, Rope
from gpt_jax.config.score import Prefix


def has_adapter(model: ModelConfig) -> bool:
    """Whether some layer has an adapter, in which case only adapters are trained."""
    return any(block.adapter is not None for block in model.blocks)


def has_dropout(model: ModelConfig) -> bool:
    """Whether training draws random numbers in the model."""
    parts = [part for block in model.blocks for part in (block, block.attention, block.adapter)]
    return any(getattr(part, "dropout", 0.0) > 0 for part in (model.embedding, *parts))


def has_prefix(model: ModelConfig) -> bool:
    """Whether some layer has the mask Prefix."""
    return any(getattr(block.attention, "mask", None) == Prefix() for block in model.blocks)


def depends_on_length(model: ModelConfig) -> bool:
    """Whether some layer's RoPE depends on the declared length of a row, so that the capacity of a cache changes
    results.
    """
    positions = [getattr(block.attention, "position", None) for block in model.blocks]
    return any(isinstance(p, Rope) and isinstance(p.scaling, DynamicNtk | LongRope) for p in positions)


def check_length(model: ModelConfig, length: int) -> None:
    """Raises UserError if `length` tokens exceed the learned table of positions."""
    limit = learned_positions(model)
    if limit is not None and length > limit:
        raise UserError(
            f"{length} tokens do not fit the learned table of {limit} positions: "
            "shorten the input or use another position scheme"
        )
