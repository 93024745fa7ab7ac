"""The compiled programs of generation: reading prompts, and generating with a cache or a sliding context."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from gpt_jax.decoding.stages import (
    Choice,
    State,
    append,
    choose,
    forward,
    init_state,
    is_unfinished,
    prefill,
    step_keys,
)
from gpt_jax.model.cache import Cache, init_cache
from gpt_jax.model.gpt import GPT


@partial(jax.jit, static_argnames=("model", "max_new_tokens", "length", "chunk"))
def begin(
    model: GPT,
    params: Any,
    prompts: Int[Array, "B T"],
    padding: Int[Array, " B"],
    keys: Key[Array, " B"],
    sampler: Choice,
    stop: Int[Array, " stops"],
    *,
    max_new_tokens: int,
    length: int,
    chunk: int | None,
) -> tuple[State, Cache]:
    """Processes the prompts and chooses the first token of each row; `length` is the size S of the cache."""
    state = init_state(prompts, max_new_tokens)
    cache = init_cache(model.config, prompts.shape[0], length, padding)
    logits, cache = prefill(model, params, prompts, cache, chunk)
    return append(state, *choose(sampler, step_keys(keys, state), logits), stop), cache


@partial(jax.jit, static_argnames="model", donate_argnames=("state", "cache"))
def advance(
    model: GPT,
    params: Any,
    state: State,
    cache: Cache,
    keys: Key[Array, " B"],
    sampler: Choice,
    stop: Int[Array, " stops"],
    until: Int[Array, ""] | int,
) -> tuple[State, Cache]:
    """Generates until each row has `until` new tokens or has stopped, with one cached step per token."""

    def step(carry: tuple[State, Cache]) -> tuple[State, Cache]:
        state, cache = carry
        last = jax.lax.dynamic_slice_in_dim(state.tokens, state.prompt_length + state.new - 1, 1, axis=1)
        logits, cache = forward(model, params, last, cache)
        return append(state, *choose(sampler, step_keys(keys, state), logits), stop), cache

    return jax.lax.while_loop(lambda carry: is_unfinished(carry[0], until), step, (state, cache))


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def advance_sliding(
    model: GPT,
    params: Any,
    state: State,
    padding: Int[Array, " B"],
    keys: Key[Array, " B"],
    sampler: Choice,
    stop: Int[Array, " stops"],
    until: Int[Array, ""] | int,
) -> State:
    """Generates as `advance`, but with a forward pass over the last `context_length` tokens for each token."""
    context = model.config.context_length

    def step(state: State) -> State:
        first = state.prompt_length + state.new - context
        window = jax.lax.dynamic_slice_in_dim(state.tokens, first, context, axis=1)
        cache = init_cache(model.config, window.shape[0], context, jnp.maximum(padding - first, 0))
        logits, _ = forward(model, params, window, cache)
        return append(state, *choose(sampler, step_keys(keys, state), logits), stop)

    return jax.lax.while_loop(lambda state: is_unfinished(state, until), step, state)
