"""Parameters laid out for decoding: once for all tokens of a text, not once for each."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax.model.gpt import GPT

transpose = jax.jit(jnp.transpose)


def with_own_head(model: GPT, params: Any) -> tuple[GPT, Any]:
    """On a CPU, a tied model with the table transposed as a head of its own: the product with a single vector then
    reads rows, not columns, at the rate at which memory is read.
    """
    config = model.config
    if not config.head.tied or jax.default_backend() != "cpu":
        return model, params
    inner = params["params"]
    head = inner["head"] if "head" in inner else {}
    kernel = transpose(inner["embedding"]["table"])
    untied = dataclasses.replace(config, head=dataclasses.replace(config.head, tied=False))
    return model.clone(config=untied), {**params, "params": {**inner, "head": {**head, "kernel": kernel}}}
