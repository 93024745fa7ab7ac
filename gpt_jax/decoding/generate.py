"""Text from a model: one prefill, then one loop over a functional cache, compiled once per shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from gpt_jax.config import depends_on_length, has_prefix
from gpt_jax.config.errors import UserError
from gpt_jax.decoding.layout import with_own_head
from gpt_jax.decoding.sampling import Greedy, Sampler
from gpt_jax.decoding.stages import Choice, State, again, append, choose, forward, prefill, start, step_keys
from gpt_jax.model.cache import Cache, init_cache
from gpt_jax.model.gpt import GPT, check_range
from gpt_jax.model.stack import canonical

SHORTEST_BUCKET = 16
SAMPLER = Sampler()
Ids = Sequence[int] | np.ndarray | Array
Prompts = Sequence[Ids] | np.ndarray | Array


class Generation(NamedTuple):
    """`tokens` (B, N): the new ids, a stop id included, then 0; `lengths` (B,): how many of them count; `logprobs`
    (B, N): each one's log-probability in nats under the model's own softmax, whatever the sampler made of it, then 0.
    """

    tokens: Int[np.ndarray, "B N"]
    lengths: Int[np.ndarray, " B"]
    logprobs: Float[np.ndarray, "B N"]


def generate(
    model: GPT,
    params: Any,
    prompts: Prompts,
    *,
    key: Array,
    max_new_tokens: int,
    sampler: Choice = SAMPLER,
    stop: Iterable[int] = (),
    slide: bool = False,
    chunk: int | None = None,
) -> Generation:
    """Continues each prompt, a list of ids of any length, by up to `max_new_tokens`, until one of the ids in `stop`.

    A row's text depends on its prompt and its key alone, not on the other rows: row b draws from `fold_in(key, b)`, or
    from `key[b]` where `key` is one key a row. Programs are reused for equal configurations, numbers of rows and new
    tokens, prompt lengths up to the next power of two, and samplers that differ in numbers only.

    `slide` lets the text outgrow the model's context: from there on each token sees the last `context_length` ones
    before it, as if they were the whole text, at the cost of a whole forward pass. `chunk` reads prompts that many
    tokens at a time, for less memory.

    Raises:
      ValueError: a prompt that is empty or has ids outside [0, V), prompt and new tokens longer than the context
        without `slide`, or a setting out of range.
    """
    run = _Run(model, params, prompts, key, max_new_tokens, sampler, stop, slide, chunk)
    state = run.advance(run.begin(), max_new_tokens)
    tokens, lengths, logprobs = jax.device_get((state.tokens[:, state.prompt_length :], state.lengths, state.logprobs))
    return Generation(tokens, lengths, logprobs)


def stream(
    model: GPT,
    params: Any,
    prompts: Prompts,
    *,
    key: Array,
    max_new_tokens: int,
    sampler: Choice = SAMPLER,
    stop: Iterable[int] = (),
    slide: bool = False,
    chunk: int | None = None,
    every: int = 1,
) -> Iterator[list[list[int]]]:
    """The ids of `generate` as they come, by the same programs: after each `every` steps, the new ids of each row.

    Raises:
      ValueError: as `generate`, at the call, before anything runs.
    """
    if every < 1:
        raise UserError(f"every must be at least 1 step, not {every}")
    return _pieces(_Run(model, params, prompts, key, max_new_tokens, sampler, stop, slide, chunk), every)


def _pieces(run: _Run, every: int) -> Iterator[list[list[int]]]:
    state, shown = run.begin(), 0
    while True:
        T, done = state.prompt_length, int(state.new)
        lengths, running = jax.device_get((state.lengths, state.running))
        tokens = np.asarray(state.tokens[:, T + shown : T + done])
        yield [row[: max(length - shown, 0)].tolist() for row, length in zip(tokens, lengths, strict=True)]
        if done == run.max_new_tokens or not running.any():
            return
        shown = done
        state = run.advance(state, min(done + every, run.max_new_tokens))


# ── compiled programs ────────────────────────────────────────────────────────────────────────────────────────────────


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
    """Reads the prompts and chooses the first token."""
    state = start(prompts, max_new_tokens)
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
    """Chooses tokens until there are `until`, each after one step through the cache."""

    def step(carry: tuple[State, Cache]) -> tuple[State, Cache]:
        state, cache = carry
        last = jax.lax.dynamic_slice_in_dim(state.tokens, state.prompt_length + state.new - 1, 1, axis=1)
        logits, cache = forward(model, params, last, cache)
        return append(state, *choose(sampler, step_keys(keys, state), logits), stop), cache

    return jax.lax.while_loop(lambda carry: again(carry[0], until), step, (state, cache))


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def slide_on(
    model: GPT,
    params: Any,
    state: State,
    padding: Int[Array, " B"],
    keys: Key[Array, " B"],
    sampler: Choice,
    stop: Int[Array, " stops"],
    until: Int[Array, ""] | int,
) -> State:
    """Chooses tokens until there are `until`, each after a forward pass over the last C = context_length ones."""
    context = model.config.context_length

    def step(state: State) -> State:
        first = state.prompt_length + state.new - context
        window = jax.lax.dynamic_slice_in_dim(state.tokens, first, context, axis=1)
        cache = init_cache(model.config, window.shape[0], context, jnp.maximum(padding - first, 0))
        logits, _ = forward(model, params, window, cache)
        return append(state, *choose(sampler, step_keys(keys, state), logits), stop)

    return jax.lax.while_loop(lambda state: again(state, until), step, state)


unstack = jax.jit(canonical)


# ── the boundary: everything is checked here, before anything runs ───────────────────────────────────────────────────


class _Run:
    """One call's arguments, checked and laid out for the compiled programs."""

    def __init__(
        self,
        model: GPT,
        params: Any,
        prompts: Prompts,
        key: Array,
        max_new_tokens: int,
        sampler: Choice,
        stop: Iterable[int],
        slide: bool,
        chunk: int | None,
    ) -> None:
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
        if chunk is not None and chunk < 1:
            raise UserError(f"chunk must be at least 1 token, not {chunk}")
        config, context = model.config, model.config.context_length
        if has_prefix(config) and (slide or chunk is not None):
            raise UserError("a model with masks of type Prefix sees its prompt whole: leave out slide and chunk")
        rows = _check_prompts(prompts, config.vocab_size)
        stops = np.asarray(list(stop), np.int32)
        check_range("stop id", stops, config.vocab_size)
        if slide:
            rows = [row[-context:] for row in rows]
        longest = max(map(len, rows))
        if longest + max_new_tokens > context and not slide:
            raise UserError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the context length of {context}: "
                "shorten one of them, or let the context slide (slide=True, --slide)"
            )

        # Layers in a loop, not stacked: a scan over stacked layers decodes 2.5 times slower on a CPU.
        model = model.clone(config=dataclasses.replace(config, scan=False, remat=None)) if config.scan else model
        self.model, self.params = with_own_head(model, unstack(params) if config.scan else params)
        self.keys = _row_keys(key, len(rows))
        self.max_new_tokens, self.chunk, self.stop = max_new_tokens, chunk, jnp.asarray(stops)
        self.sampler = _as_pytree(sampler)
        # Where numbers go by the declared length, it is what is asked for, though each length be compiled anew.
        room = longest if depends_on_length(config) else bucket(longest)
        width = min(room, context if slide else context - max_new_tokens)
        self.prompts = np.stack([np.pad(row, (width - len(row), 0)) for row in rows])
        self.padding = np.array([width - len(row) for row in rows], np.int32)
        # New tokens that a cache of the context's length has room for; the last one is chosen and never read.
        self.cached = min(max_new_tokens, context - width + 1)

    def begin(self) -> State:
        length = self.prompts.shape[1] + self.cached - 1
        state, self.cache = begin(
            self.model,
            self.params,
            self.prompts,
            self.padding,
            self.keys,
            self.sampler,
            self.stop,
            max_new_tokens=self.max_new_tokens,
            length=length,
            chunk=self.chunk,
        )
        return state

    def advance(self, state: State, until: int) -> State:
        rest = (self.keys, self.sampler, self.stop)
        if int(state.new) < self.cached:
            state, self.cache = advance(self.model, self.params, state, self.cache, *rest, min(until, self.cached))
        if until > self.cached:
            state = slide_on(self.model, self.params, state, self.padding, *rest, until)
        return state


def bucket(length: int) -> int:
    """The length that prompts of `length` tokens are padded to: a power of two, so that few shapes are compiled."""
    return max(SHORTEST_BUCKET, 1 << (length - 1).bit_length())


def _check_prompts(prompts: Any, vocab_size: int | None) -> list[Int[np.ndarray, " T"]]:
    if isinstance(prompts, str) or len(prompts) == 0:
        raise UserError("prompts must be a list of id lists, one a row, with at least one row: encode texts first")
    rows = [np.asarray(prompt) for prompt in prompts]
    for i, row in enumerate(rows):
        if row.ndim != 1:
            raise UserError("prompts must be a list of id lists, one a row: put a single prompt in [ ]")
        if row.size == 0:
            raise UserError(
                f"prompt {i} is empty: give it at least one token to continue, such as the tokenizer's end_of_text"
            )
        if not np.issubdtype(row.dtype, np.integer):
            raise UserError(f"prompt {i} must hold integer ids, not {row.dtype}: encode the text first")
        check_range(f"prompt {i}: token id", row, vocab_size)
    return [row.astype(np.int32) for row in rows]


def _as_pytree(sampler: Choice) -> Choice:
    if isinstance(sampler, Sampler) and sampler.is_greedy:
        return Greedy()
    is_leaf = jax.tree_util.all_leaves([sampler])
    return jax.tree_util.Partial(sampler) if is_leaf else sampler  # what is no pytree is a constant of the program


def _row_keys(key: Array, rows: int) -> Key[Array, " B"]:
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    if key.shape != (rows,):
        raise UserError(f"give one key, or one for each of the {rows} prompts, not keys of shape {key.shape}")
    return key
