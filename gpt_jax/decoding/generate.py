"""Text generation: one prefill, then one loop over a functional cache, compiled once per shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from gpt_jax.config import depends_on_length, has_prefix
from gpt_jax.config.errors import UserError
from gpt_jax.decoding.layout import with_untied_head
from gpt_jax.decoding.programs import advance, advance_sliding, begin
from gpt_jax.decoding.sampling import Greedy, Sampler
from gpt_jax.decoding.stages import Choice, State
from gpt_jax.model.gpt import GPT, check_range
from gpt_jax.model.placement import mesh_of
from gpt_jax.model.stack import canonical

SHORTEST_BUCKET = 16
SAMPLER = Sampler()
unstack = jax.jit(canonical)
Ids = Sequence[int] | np.ndarray | Array
Prompts = Sequence[Ids] | np.ndarray | Array


class Generation(NamedTuple):
    """The generated text of B rows, with N = `max_new_tokens`.

    Attributes:
      tokens: the new ids, including a stop id, followed by 0.
      lengths: the number of new ids in each row.
      logprobs: the log-probability (nats) of each new id under the model's softmax, before temperature and filters,
        followed by 0.
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
    """Continues each prompt by up to `max_new_tokens` ids.

    A row's text depends only on its prompt and its key, not on the other rows. Compiled programs are reused for the
    same configuration, number of rows and number of new tokens, for prompt lengths up to the same power of two, and for
    samplers that differ in numbers only.

    Args:
      model: the model.
      params: its parameters, on one device or on a mesh (`load_run`), which then divides rows and heads too.
      prompts: B lists of ids, which may differ in length.
      key: one key, from which row b uses `fold_in(key, b)`, or one key per row (B,).
      max_new_tokens: N.
      sampler: chooses the next ids; see `gpt_jax.decoding.sampling`.
      stop: ids after which a row ends.
      slide: lets the text grow longer than the context. From there on, each token sees only the last `context_length`
        tokens, as if the text started with them; each costs a full forward pass.
      chunk: processes prompts this many tokens at a time, which needs less memory.

    Raises:
      UserError: a prompt is empty or has ids outside [0, V), prompt and new tokens exceed the context without `slide`,
        or an argument is out of range.
    """
    request = _Request(model, params, prompts, key, max_new_tokens, sampler, stop, slide, chunk)
    state = request.advance(request.begin(), max_new_tokens)
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
    """Yields the ids of `generate` as they are generated: after every `every` steps, the new ids of each row.

    Takes the arguments of `generate`, and runs the same programs.

    Raises:
      UserError: as `generate`; raised by the call itself, before the first item is requested.
    """
    if every < 1:
        raise UserError(f"every must be at least 1 step, not {every}")
    return _pieces(_Request(model, params, prompts, key, max_new_tokens, sampler, stop, slide, chunk), every)


def _pieces(request: _Request, every: int) -> Iterator[list[list[int]]]:
    state, shown = request.begin(), 0
    while True:
        T, done = state.prompt_length, int(state.new)
        lengths, running = jax.device_get((state.lengths, state.running))
        tokens = np.asarray(state.tokens[:, T + shown : T + done])
        yield [row[: max(length - shown, 0)].tolist() for row, length in zip(tokens, lengths, strict=True)]
        if done == request.max_new_tokens or not running.any():
            return
        shown = done
        state = request.advance(state, min(done + every, request.max_new_tokens))


# ── the boundary: all arguments are checked here, before anything runs ────────────────────────────────────────────────


class _Request:
    """The arguments of one call, checked and laid out for the compiled programs."""

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
            raise UserError("a model with masks of type Prefix must see its prompt at once: leave out slide and chunk")
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

        # Unrolled layers: on CPU, a scan over stacked layers decodes 2.5 times slower.
        model = model.clone(config=dataclasses.replace(config, scan=False, remat=None)) if config.scan else model
        self.model, self.params = with_untied_head(model, unstack(params) if config.scan else params)
        self.mesh = mesh_of(self.params)
        self.keys = _row_keys(key, len(rows))
        self.max_new_tokens, self.chunk, self.stop = max_new_tokens, chunk, jnp.asarray(stops)
        self.sampler = _as_pytree(sampler)
        # If the numbers depend on the length of the cache, it is exact, and each length compiles its own program.
        room = longest if depends_on_length(config) else bucket(longest)
        width = min(room, context if slide else context - max_new_tokens)
        self.prompts = np.stack([np.pad(row, (width - len(row), 0)) for row in rows])
        self.padding = np.array([width - len(row) for row in rows], np.int32)
        # The number of new tokens before a cache of the context's length is full; the last token is never fed back.
        self.cached = min(max_new_tokens, context - width + 1)

    def begin(self) -> State:
        length = self.prompts.shape[1] + self.cached - 1
        with self._under_mesh():
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
        with self._under_mesh():
            if int(state.new) < self.cached:
                state, self.cache = advance(self.model, self.params, state, self.cache, *rest, min(until, self.cached))
            if until > self.cached:
                state = advance_sliding(self.model, self.params, state, self.padding, *rest, until)
        return state

    def _under_mesh(self) -> AbstractContextManager[Any]:
        """The programs are traced with the parameters' mesh in context, which divides rows and heads of the cache."""
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def bucket(length: int) -> int:
    """Returns the length that prompts of `length` tokens are padded to: a power of two, so that few shapes compile."""
    return max(SHORTEST_BUCKET, 1 << (length - 1).bit_length())


def _check_prompts(prompts: Any, vocab_size: int | None) -> list[Int[np.ndarray, " T"]]:
    if isinstance(prompts, str) or len(prompts) == 0:
        raise UserError("prompts must be a list of id lists, one per row, with at least one row: encode texts first")
    rows = [np.asarray(prompt) for prompt in prompts]
    for i, row in enumerate(rows):
        if row.ndim != 1:
            raise UserError("prompts must be a list of id lists, one per row: put a single prompt in [ ]")
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
    return jax.tree_util.Partial(sampler) if is_leaf else sampler  # a callable that is no pytree is static


def _row_keys(key: Array, rows: int) -> Key[Array, " B"]:
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    if key.shape != (rows,):
        raise UserError(f"key must be one key, or one for each of the {rows} prompts, not of shape {key.shape}")
    return key
