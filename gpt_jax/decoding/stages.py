"""The loop's stages as pure functions: forward, choose, append, again."""

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

PADDING = 0  # what stands after a stop token
Choice = Callable[[Array, Array], Array]


@struct.dataclass
class State:
    """B rows of text in the making.

    `tokens`: T of the prompts, left padding included, then room for N new ones (S = T + N); `logprobs` of the new
    ones; `lengths`: how many new ones a row has; `running`: rows that have met no stop token; `new`: steps made.
    """

    tokens: Any  # int32 (B, S)
    logprobs: Any  # float32 (B, N)
    lengths: Any  # int32 (B,)
    running: Any  # bool (B,)
    new: Any  # int32 ()

    @property
    def prompt_length(self) -> int:
        """T."""
        return self.tokens.shape[1] - self.logprobs.shape[1]


def start(prompts: Int[Array, "B T"], max_new_tokens: int) -> State:
    """Prompts with room for `max_new_tokens` more."""
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
    """Logits of what follows the last of `tokens`, and the cache with all of them in it; `prefix` as in `GPT`.

    Raises:
      ValueError: in eager calls, see `GPT`.
    """

    def last(model: GPT) -> tuple[Float[Array, "B 1 V"], Cache]:
        hidden, extended = model.backbone(tokens, cache=cache, prefix=prefix)
        return model.head(hidden[:, -1:], model.embedding.table), extended

    logits, extended = cast(Any, model.apply(params, method=last))
    return logits[:, 0], extended


def prefill(
    model: GPT, params: Any, tokens: Int[Array, "B T"], cache: Cache, chunk: int | None = None
) -> tuple[Float[Array, "B V"], Cache]:
    """`forward` of a whole prompt; with `chunk`, that many tokens at a time, which needs less memory and gives the
    same numbers. Where the model has masks of type Prefix, the prompt is the prefix, and read at once.

    Raises:
      ValueError: `chunk` is no positive number or not for this model, or as `forward`.
    """
    if chunk is not None and chunk < 1:
        raise UserError(f"a prompt is read in chunks of at least 1 token, not {chunk}")
    (B, T) = tokens.shape
    if has_prefix(model.config):
        if chunk is not None:
            raise UserError("a model with masks of type Prefix sees its prompt whole: read it without chunk")
        return forward(model, params, tokens, cache, T - cache.padding)
    if chunk is None or chunk >= T:
        return forward(model, params, tokens, cache)
    whole = (T - 1) // chunk  # at least one token is left for the last, whose logits count

    def read(cache: Cache, part: Int[Array, "B chunk"]) -> tuple[Cache, None]:
        _, extended = cast(Any, model.apply(params, part, cache=cache, method="backbone"))
        return extended, None

    parts = tokens[:, : whole * chunk].reshape(B, whole, chunk).swapaxes(0, 1)
    cache, _ = jax.lax.scan(read, cache, parts)
    return forward(model, params, tokens[:, whole * chunk :], cache)


def choose(
    sampler: Choice, keys: Key[Array, " B"], logits: Float[Array, "B V"]
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """The next id of each row, and its log-probability (nats) under the model itself: before temperature and
    filters.
    """
    ids = sampler(keys, logits)
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return ids, jnp.take_along_axis(logprobs, ids[:, None], axis=-1)[:, 0]


def append(state: State, ids: Int[Array, " B"], logprobs: Float[Array, " B"], stop: Int[Array, " stops"]) -> State:
    """The state with one more token in each row that is running; in the others, padding of log-probability 0."""
    ids = jnp.where(state.running, ids, PADDING)
    logprobs = jnp.where(state.running, logprobs, 0.0)
    return State(
        tokens=jax.lax.dynamic_update_slice(state.tokens, ids[:, None], (0, state.prompt_length + state.new)),
        logprobs=jax.lax.dynamic_update_slice(state.logprobs, logprobs[:, None], (0, state.new)),
        lengths=state.lengths + state.running,
        running=state.running & ~jnp.isin(ids, stop),
        new=state.new + 1,
    )


def again(state: State, until: Int[Array, ""] | int) -> Bool[Array, ""]:
    """Whether to go on: fewer than `until` steps were made and a row is running."""
    return (state.new < until) & state.running.any()


def step_keys(keys: Key[Array, " B"], state: State) -> Key[Array, " B"]:
    """Each row's key for its next token."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, state.new)
