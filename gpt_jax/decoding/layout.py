"""Parameters laid out for decoding, once per text instead of once per token."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax.model.gpt import GPT

transpose = jax.jit(jnp.transpose)


def with_untied_head(model: GPT, params: Any) -> tuple[GPT, Any]:
    """Returns a tied model and its parameters with the embedding table transposed into a separate head, on CPU only.

    The product of a (C, V) kernel with one vector then reads memory in order, at full bandwidth. Other models and other
    devices are returned unchanged.
    """
    config = model.config
    if not config.head.tied or jax.default_backend() != "cpu":
        return model, params
    inner = params["params"]
    head = inner["head"] if "head" in inner else {}
    kernel = transpose(inner["embedding"]["table"])
    untied = dataclasses.replace(config, head=dataclasses.replace(config.head, tied=False))
    return model.clone(config=untied), {**params, "params": {**inner, "head": {**head, "kernel": kernel}}}
