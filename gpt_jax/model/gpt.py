"""The decoder: tokens → embedding → blocks → final norm → head → logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg
from gpt_jax.config.errors import UserError
from gpt_jax.model.cache import Cache
from gpt_jax.model.embedding import TokenEmbedding
from gpt_jax.model.head import LmHead
from gpt_jax.model.norm import make_norm
from gpt_jax.model.placement import by_rows
from gpt_jax.model.row import Row
from gpt_jax.model.stack import Blocks
from gpt_jax.model.taps import Edit, Taps, tap, tapping


class GPT(nn.Module):
    """A GPT-style decoder (Radford et al. 2018; Brown et al. 2020, arXiv:2005.14165) as a pure function of
    its parameters, `params = model.init(key, tokens)`:

        logits = model.apply(params, tokens)                               # (B, T, V), float32
        logits = model.apply(params, tokens, segments=…, positions=…, train=True, rngs={"dropout": key})
        logits, cache = model.apply(params, tokens, cache=cache)           # from `init_cache`
        logits, captured = model.apply(params, tokens, capture="blocks/*/attention/probabilities")
        logits = model.apply(params, tokens, edit={"blocks/3/attention/heads": lambda heads: heads.at[:, 5].set(0)})
        hidden = model.apply(params, tokens, method="backbone")            # (B, T, C)

    Args:
      tokens: ids (B, T).
      segments: (B, T), the document of each token; tokens of different documents never attend to one another. None:
        each row is one document.
      positions: (B, T), usually restarting in each document. None: 0 … T − 1.
      prefix: (B,), how many tokens at the beginning of each row attend to one another in both directions, in layers of
        mask `Prefix`. With a cache, pass it to the call that reads those tokens.
      cache: a `Cache` from `init_cache`; the call appends its T tokens and also returns the extended cache.
      train: applies dropout, which needs `rngs={"dropout": key}`.
      capture: a glob over the names of the taps (`*` stops at "/", `**` crosses it), or several. The matching values
        are returned as a dict, the last item of the result. Layers whose scores, logits or probabilities are asked for
        compute them with the einsum, whatever `kernel` says.
      edit: glob → function of a tapped value, which returns the value to go on with, of the same shape and dtype. If
        several match, each gets what the one before returned. `capture` returns edited values.

    Raises:
      UserError: a row longer than a learned table, segments or positions with a cache, a `capture` or an `edit` that
        matches nothing, an edit that changes a shape, a prefix that no layer reads; in eager calls also an id outside
        [0, V), a position beyond a learned table, or tokens past the cache's end. A compiled call cannot inspect
        values: check them at the boundary, as `generate` and the data pipeline do.
    """

    config: cfg.ModelConfig

    def setup(self) -> None:
        c = self.config
        if c.vocab_size is None:
            raise UserError("model.vocab_size is None: give the tokenizer's vocab_size")
        self.embedding = TokenEmbedding(c)
        self.blocks = Blocks(c)
        self.final_norm = make_norm(c.final_norm, c.param_dtype)
        self.head = LmHead(c)

    def __call__(self, tokens: Int[Array, "B T"], **options: Any) -> Any:
        return self._run(tokens, True, **options)

    def backbone(self, tokens: Int[Array, "B T"], **options: Any) -> Any:
        """Everything below the head: tokens (B, T) → hidden (B, T, C), with the same options as a plain call."""
        return self._run(tokens, False, **options)

    def _run(
        self,
        tokens: Int[Array, "B T"],
        to_logits: bool,
        *,
        capture: str | Sequence[str] | None = None,
        edit: Mapping[str, Edit] | None = None,
        **options: Any,
    ) -> Any:
        with tapping(self, capture, edit) as taps:
            result, cache = self._hidden(tokens, **options)
            if to_logits:
                result = tap(self, "logits", self.logits(result))
        return _unwrap(result, cache, taps, capture)

    def logits(self, hidden: Float[Array, "B T C"]) -> Float[Array, "B T V"]:
        """The head: hidden vectors of `backbone` → logits. It needs no parameters but its own, or the embedding's."""
        return self.head(hidden, self.embedding.table if self.config.head.tied else None)

    def read_out(self, x: Float[Array, "B T C"]) -> Float[Array, "B T V"]:
        """The logits of a residual stream as if it were the last one: final norm and head."""
        return self.logits(self.final_norm(x))

    def logits_of(self, hidden: Float[Array, "B T C"], ids: Int[Array, "B T"]) -> Float[Array, "B T"]:
        """The logit of one token id at each position, without those of all the others."""
        return self.head.of(hidden, self.embedding.table if self.config.head.tied else None, ids)

    def _hidden(
        self,
        tokens: Int[Array, "B T"],
        *,
        segments: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        prefix: Int[Array, " B"] | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T C"], Cache | None]:
        check_inputs(self.config, tokens, positions, segments, prefix, cache)
        row = make_row(tokens, positions, segments, prefix, cache)
        x = tap(self, "embedding", by_rows(self.embedding(tokens, row.positions, train)))
        x, caches = self.blocks(x, row, None if cache is None else cache.layers, train)
        hidden = tap(self, "hidden", self.final_norm(x))
        if cache is not None:
            assert caches is not None
            cache = dataclasses.replace(cache, layers=caches, step=cache.step + tokens.shape[1])
        return hidden, cache

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, **options: Any) -> Any:
        """Initial parameters. Always compiled, because eager execution would round the last bit differently."""
        return jax.jit(partial(super().init, **options))(rngs, *args)


def make_row(
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"] | None,
    segments: Int[Array, "B T"] | None,
    prefix: Int[Array, " B"] | None,
    cache: Cache | None,
) -> Row:
    """The `Row` of these tokens: from the beginning of the row, or after the tokens that the cache holds."""
    steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    if cache is None:
        return Row(tokens, steps, steps[None] if positions is None else positions, segments, prefix)
    steps += cache.step
    positions = jnp.maximum(steps[None] - cache.padding[:, None], 0)
    return Row(tokens, steps, positions, None, prefix, cache.padding, cache.length)


def check_inputs(
    model: cfg.ModelConfig,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"] | None,
    segments: Int[Array, "B T"] | None,
    prefix: Int[Array, " B"] | None,
    cache: Cache | None,
) -> None:
    """Refuses indices that JAX would silently clamp or wrap. Traced values are not checked.

    Raises:
      UserError: see `GPT`.
    """
    cfg.check_length(model, tokens.shape[1])
    check_range("token id", tokens, model.vocab_size)
    if positions is not None:
        check_range("position", positions, cfg.learned_positions(model))
    if prefix is not None:
        _check_prefix(model, tokens, segments, prefix, cache)
    if cache is not None:
        if segments is not None or positions is not None:
            raise UserError(
                "a cache holds one document per row and counts its positions: pass no segments or positions"
            )
        if not isinstance(cache.step, jax.core.Tracer) and int(cache.step) + tokens.shape[1] > cache.length:
            raise UserError(
                f"the cache has room for {cache.length} tokens and holds {int(cache.step)}, so {tokens.shape[1]} more "
                "do not fit: pass a greater length to init_cache"
            )


def _check_prefix(
    model: cfg.ModelConfig,
    tokens: Int[Array, "B T"],
    segments: Int[Array, "B T"] | None,
    prefix: Int[Array, " B"],
    cache: Cache | None,
) -> None:
    if not cfg.has_prefix(model):
        raise UserError("no layer has the mask Prefix(), so nothing reads the prefix: choose that mask or pass none")
    if segments is not None:
        raise UserError("a prefix is the beginning of a row that is one document: pass no segments with it")
    check_range("prefix", prefix, None)
    if cache is None:
        check_range("prefix", prefix, tokens.shape[1] + 1)
    elif not any(isinstance(x, jax.core.Tracer) for x in (prefix, cache.step, cache.padding)):
        if int(cache.step) > 0 or np.any(np.asarray(prefix) + np.asarray(cache.padding) > tokens.shape[1]):
            raise UserError(
                f"the tokens of a prefix attend to one another: pass all {int(np.max(prefix))} of them to the first "
                "call with this cache, and no prefix to the calls that follow"
            )


def check_range(what: str, values: Any, stop: int | None) -> None:
    """Raises UserError unless all concrete `values` lie in [0, stop); `stop` None means no upper bound."""
    if isinstance(values, jax.core.Tracer) or np.size(values) == 0:
        return
    values = np.asarray(values)
    low, high = int(values.min()), int(values.max())
    if low < 0 or (stop is not None and high >= stop):
        bad = low if low < 0 else high
        raise UserError(f"{what} {bad} is out of range: it must lie in [0, {'∞' if stop is None else stop})")


def _unwrap(result: Array, cache: Cache | None, taps: Taps | None, capture: Any) -> Any:
    """`result` alone, or a tuple of it, the cache and, with `capture`, the captured values."""
    captured = None if taps is None else taps.captured()
    extras = [extra for extra in (cache, None if capture is None else captured) if extra is not None]
    return (result, *extras) if extras else result
