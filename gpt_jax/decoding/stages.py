"""The steps of the decoding loop as pure functions: forward, choose, append, is_unfinished."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from gpt_jax.config import has_prefix
from gpt_jax.config.errors import UserError
from gpt_jax.model.cache import Cache
from gpt_jax.model.gpt import GPT

PADDING = 0  # the id after a stop token
Choice = Callable[[Array, Array], Array]


@struct.dataclass
class State:
    """B rows of text during generation.

    Attributes:
      tokens: the prompts, left-padded to T tokens, followed by up to N new tokens; S = T + N.
      logprobs: the log-probabilities (nats) of the new tokens.
      lengths: the number of new tokens in each row.
      running: the rows that have not reached a stop token.
      new: the number of steps so far.
    """

    tokens: Any  # int32 (B, S)
    logprobs: Any  # float32 (B, N)
    lengths: Any  # int32 (B,)
    running: Any  # bool (B,)
    new: Any  # int32 ()

    @property
    def prompt_length(self) -> int:
        """T, including left padding."""
        return self.tokens.shape[1] - self.logprobs.shape[1]


def init_state(prompts: Int[Array, "B T"], max_new_tokens: int) -> State:
    """Returns the state before the first step, with room for N = `max_new_tokens` new tokens."""
    B = prompts.shape[0]
    return State(
        tokens=jnp.pad(prompts, ((0, 0), (0, max_new_tokens)), constant_values=PADDING),
        logprobs=jnp.zeros((B, max_new_tokens), jnp.float32),
        lengths=jnp.zeros(B, jnp.int32),
        running=jnp.ones(B, bool),
        new=jnp.zeros((), jnp.int32),
    )


def forward(
    model: GPT, params: Any, tokens: Int[Array, "B T"], cache: Cache, prefix: Int[Array, " B"] | None = None
) -> tuple[Float[Array, "B V"], Cache]:
    """Runs `tokens` through the model after those in `cache`.

    Returns the logits of the token that follows, and the cache extended by `tokens`. `prefix` is as in `GPT`, and so
    are the errors of eager calls.
    """

    def last(model: GPT) -> tuple[Float[Array, "B 1 V"], Cache]:
        hidden, extended = model.backbone(tokens, cache=cache, prefix=prefix)
        return model.head(hidden[:, -1:], model.embedding.table), extended

    logits, extended = cast(Any, model.apply(params, method=last))
    return logits[:, 0], extended


def prefill(
    model: GPT, params: Any, tokens: Int[Array, "B T"], cache: Cache, chunk: int | None = None
) -> tuple[Float[Array, "B V"], Cache]:
    """Runs a prompt through the model; returns the logits of the next token and the cache with the prompt.

    With `chunk`, the prompt is processed that many tokens at a time, which needs less memory and gives the same
    numbers. In a model with masks of type Prefix, the prompt is the prefix and must be processed at once.

    Raises:
      UserError: `chunk` is less than 1, or the model has masks of type Prefix.
    """
    if chunk is not None and chunk < 1:
        raise UserError(f"chunk must be at least 1 token, not {chunk}")
    (B, T) = tokens.shape
    if has_prefix(model.config):
        if chunk is not None:
            raise UserError("a model with masks of type Prefix must see its prompt at once: leave out chunk")
        return forward(model, params, tokens, cache, T - cache.padding)
    if chunk is None or chunk >= T:
        return forward(model, params, tokens, cache)
    whole = (T - 1) // chunk  # leaves at least one token for the last call, which computes logits

    def read(cache: Cache, part: Int[Array, "B chunk"]) -> tuple[Cache, None]:
        _, extended = cast(Any, model.apply(params, part, cache=cache, method="backbone"))
        return extended, None

    parts = tokens[:, : whole * chunk].reshape(B, whole, chunk).swapaxes(0, 1)
    cache, _ = jax.lax.scan(read, cache, parts)
    return forward(model, params, tokens[:, whole * chunk :], cache)


def choose(
    sampler: Choice, keys: Key[Array, " B"], logits: Float[Array, "B V"]
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Chooses the next id of each row with `sampler`, called with one key per row.

    Returns the ids and their log-probabilities (nats) under the model itself, before temperature and filters.
    """
    ids = sampler(keys, logits)
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return ids, jnp.take_along_axis(logprobs, ids[:, None], axis=-1)[:, 0]


def append(state: State, ids: Int[Array, " B"], logprobs: Float[Array, " B"], stop: Int[Array, " stops"]) -> State:
    """Appends a token to each running row, and padding with log-probability 0 to the others.

    A row stops running after a token in `stop`, which still counts as part of the row.
    """
    ids = jnp.where(state.running, ids, PADDING)
    logprobs = jnp.where(state.running, logprobs, 0.0)
    return State(
        tokens=jax.lax.dynamic_update_slice(state.tokens, ids[:, None], (0, state.prompt_length + state.new)),
        logprobs=jax.lax.dynamic_update_slice(state.logprobs, logprobs[:, None], (0, state.new)),
        lengths=state.lengths + state.running,
        running=state.running & ~jnp.isin(ids, stop),
        new=state.new + 1,
    )


def is_unfinished(state: State, until: Int[Array, ""] | int) -> Bool[Array, ""]:
    """Whether fewer than `until` steps were made and at least one row is running."""
    return (state.new < until) & state.running.any()


def step_keys(keys: Key[Array, " B"], state: State) -> Key[Array, " B"]:
    """Derives each row's key for the next token from the row's key and the number of steps so far."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, state.new)
