"""Whether the tensors of a published model and its config.json fit each other.

What takes memory or time with the sizes in config.json comes after the checks of those sizes: a few bytes can claim a
thousand million layers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from gpt_jax.config import ModelConfig
from gpt_jax.config.errors import ConfigError, UserError
from gpt_jax.interop.family import Family, TensorRow
from gpt_jax.interop.settings import Settings, checked_whole
from gpt_jax.interop.weights import Tensor
from gpt_jax.model.paths import matches

CONFIG = "config.json"
LAYERS = "num_hidden_layers"
# Every one of these is the length of an axis of some tensor, or divides it.
WIDTHS = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")


def check_sizes(settings: Settings, stored: Mapping[str, Tensor]) -> None:
    """Raises ConfigError if a size in config.json is beyond what the tensors can hold."""
    layers = {int(found.group(1)) for name in stored if (found := re.search(r"(?:^|\.)(\d{1,9})\.", name))}
    count = settings.integer(LAYERS)
    lacking = next((layer for layer in range(min(count, len(layers) + 1)) if layer not in layers), None)
    if lacking is not None:
        raise ConfigError(
            f'{CONFIG} has "{LAYERS}": {count}, and the weights have no tensor of layer {lacking}: restore both'
        )
    numbers = sum(math.prod(tensor.shape) for tensor in stored.values())
    for key in WIDTHS:
        if settings.has_default(key) and settings[key] is not None:
            checked_whole(key, settings[key], 1)
            if settings[key] > numbers:
                raise ConfigError(f'{CONFIG} has "{key}": {settings[key]}, and the weights hold {numbers} numbers')


def _check_total(shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, Tensor]) -> None:
    """Raises UserError if the parameters are more numbers than all tensors hold."""
    wanted, found = (sum(map(math.prod, each)) for each in (shapes.values(), (x.shape for x in stored.values())))
    if wanted > found:
        path = max(shapes, key=lambda path: math.prod(shapes[path]))
        raise UserError(
            f"by {CONFIG} the model has {wanted:,} parameters ({path} {list(shapes[path])}), and the weights hold"
            f" {found:,} numbers: restore both"
        )


def account(
    family: Family,
    model: ModelConfig,
    rows: tuple[TensorRow, ...],
    stored: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    ignore: tuple[str, ...],
) -> None:
    """Raises UserError if a tensor is missing, has no place in the model, or contradicts the shapes of config.json."""
    for row in rows:
        for name in row.names:
            if name not in stored:
                raise UserError(
                    f"the weights lack the tensor {name}, which a {family.model_type} with this {CONFIG} needs"
                )
    _check_total(shapes, stored)
    for row in rows:
        wanted = their_shape(row, shapes)[0 if row.count is None else 1 :]
        for name in row.names:
            if not jnp.issubdtype(stored[name].dtype, jnp.floating):
                raise UserError(f"the tensor {name} is of type {stored[name].dtype}, which is none of weights")
            found = stored[name].shape
            if found != wanted:
                raise UserError(f"the tensor {name} has the shape {found}, and by {CONFIG} it must be {wanted}")
    unread = ignore + family.ignored + (family.copies if model.head.tied else ())
    known = {name for row in rows for name in row.names}
    for name in stored:
        if name not in known and not matches(name, unread):
            raise UserError(
                f"the tensor {name} {list(stored[name].shape)} has no place in a {family.model_type} with this "
                f'{CONFIG}; if it does not change the logits, pass ignore=("{name}",)'
            )


def check_copies(family: Family, rows: tuple[TensorRow, ...], stored: Mapping[str, Tensor]) -> None:
    """Raises UserError if a tied model has a head that differs from the embedding table."""
    table = next(row.theirs for row in rows if row.ours == ("embedding/table",))
    for name in family.copies:
        if name in stored and name not in {row.theirs for row in rows}:
            if not np.array_equal(stored[name].read(), stored[table].read()):
                raise UserError(
                    f'{CONFIG} has "tie_word_embeddings", but {name} differs from {table}: correct one of them'
                )


def their_shape(row: TensorRow, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the shape of the tensor, or stack of tensors, that holds parameters of these `shapes`."""
    zeros = [np.broadcast_to(np.zeros((), np.int8), shapes[path]) for path in row.ours]
    return tuple(row.write(*zeros).shape)
