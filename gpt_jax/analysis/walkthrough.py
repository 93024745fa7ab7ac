"""One text on its way through one model, as plain records: everything that a page of it shows.

The text is a prompt and its greedy continuation. One call of the model reads the values of all of it: attention is
causal, so the first t rows of each value are those of the first t tokens. Numbers are kept as the model has them, in
float32; a page rounds what it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gpt_jax.analysis.capture import read
from gpt_jax.analysis.embeddings import nearest_neighbours
from gpt_jax.analysis.lens import logit_lens
from gpt_jax.analysis.walkthrough_cache import CacheEntry, cache_entries
from gpt_jax.analysis.walkthrough_layer import Layer, Limits, read_layers, sampled_channels
from gpt_jax.analysis.walkthrough_token import Token, tokens_of, visible
from gpt_jax.config import Learned, depends_on_length, has_prefix
from gpt_jax.config.errors import UserError
from gpt_jax.data.tokenizer import Tokenizer
from gpt_jax.decoding.generate import bucket, generate
from gpt_jax.decoding.sampling import Greedy
from gpt_jax.model.gpt import GPT

NEW_TOKENS = 16  # how many tokens continue the prompt, where the context has room
TOP, NEIGHBOURS, LENS = 8, 6, 3
NAMED = 48  # of the most probable tokens of each step, the page knows the texts
WHOLE_LOGITS = 1 << 18  # up to so many logits of all steps together, those of the whole vocabulary are kept,
KEPT_LOGITS = 2048  # and beyond, so many of each step


@dataclass(frozen=True)
class Embedding:
    """Rows of the table and of the learned positions (None without), and what enters the first layer, each (T, c); the
    tokens most similar to each of the text, and the cosines.
    """

    rows: Float[np.ndarray, "T c"]
    positions: Float[np.ndarray, "T c"] | None
    output: Float[np.ndarray, "T c"]
    neighbours: Int[np.ndarray, "T N"]
    cosines: Float[np.ndarray, "T N"]


@dataclass(frozen=True)
class Predictions:
    """What the model expects to follow.

    Each token's most probable followers, `ids` and `logits` (T, top), and the logarithm of the sum of all exp(logit),
    `log_z` (T). `steps` (N, K) are the logits at the end of the prompt and after each new token: of all V tokens, or,
    where `step_ids` (N, K) is not None, of the most probable ones, which hold the share `held` (N) of the probability.
    """

    ids: Int[np.ndarray, "T top"]
    logits: Float[np.ndarray, "T top"]
    log_z: Float[np.ndarray, " T"]
    steps: Float[np.ndarray, "N K"]
    step_ids: Int[np.ndarray, "N K"] | None
    held: Float[np.ndarray, " N"]


@dataclass(frozen=True)
class Lens:
    """What each layer's output would predict: ids and log probabilities (L + 1, T, N), index 0 the embedding's."""

    ids: Int[np.ndarray, "N T top"]
    log_probabilities: Float[np.ndarray, "N T top"]


@dataclass(frozen=True)
class Walkthrough:
    """All that is shown of one model. T tokens are shown from position `first` on, the last `new` of them generated;
    `texts` are the texts of the ids that occur anywhere. `notes` say what is left out, in sentences.
    """

    name: str
    facts: dict[str, str]
    notes: tuple[str, ...]
    first: int
    new: int
    tokens: tuple[Token, ...]
    embedding: Embedding
    layers: tuple[Layer, ...]
    hidden: Float[np.ndarray, "T c"]
    predictions: Predictions
    lens: Lens
    cache: tuple[CacheEntry, ...]
    context_length: int
    texts: dict[int, str]


def walk_through(
    model: GPT,
    params: Any,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    name: str,
    new_tokens: int | None = None,
    limits: Limits | None = None,
    shares_programs: bool = False,
) -> Walkthrough:
    """Walks `prompt` and up to `new_tokens` greedily chosen tokens through the model; the text ends earlier at one of
    the tokenizer's stop ids. None: `NEW_TOKENS`, or as many as the context has room for.

    Args:
      shares_programs: pads the text on its right, where no token of it looks, so that texts of similar lengths share
        compiled programs. Values agree to rounding. A model that depends on the length of the row is not padded.

    Raises:
      UserError: the prompt is empty or longer than the context, or there are more new tokens than `limits` shows.
    """
    limits = Limits() if limits is None else limits
    c, P = model.config, len(prompt)
    if not 0 < P <= c.context_length:
        raise UserError(f"a prompt has from 1 to {c.context_length} tokens, and this one has {P}: give another one")
    if new_tokens is None:
        new_tokens = min(NEW_TOKENS, limits.positions - 1, c.context_length - P)
    if not 0 <= new_tokens < limits.positions:
        raise UserError(f"the page shows from 0 to {limits.positions - 1} new tokens, not {new_tokens}")
    ids = [*map(int, prompt), *_continuation(model, params, tokenizer, prompt, new_tokens)]
    is_padded = shares_programs and not depends_on_length(c)
    room = min(bucket(len(ids)), c.context_length) if is_padded else len(ids)
    tokens, new = jnp.asarray([[*ids, *[0] * (room - len(ids))]]), len(ids) - P
    options: dict[str, Any] = {"prefix": jnp.asarray([P])} if has_prefix(c) else {}
    first = max(0, len(ids) - limits.positions)
    shown, channels = slice(first, len(ids)), sampled_channels(c.width, limits)

    layers, notes = read_layers(model, params, tokens, len(ids), first, limits, options)
    found = {key: value[0, : len(ids)] for key, value in read(model, params, tokens, LEVELS, **options).items()}
    lens = logit_lens(model, params, tokens, top=min(LENS, found["logits"].shape[-1]), **options)
    predictions = _predictions(found["logits"][shown], new)
    embedding = _embedding(model, params, tokens[0], shown, found["embedding"], channels)
    lensed = Lens(lens.ids[:, 0, shown], lens.log_probabilities[:, 0, shown])
    return Walkthrough(
        name=name,
        facts=_facts(model),
        notes=(*_notes(model, ids, first, len(channels), predictions), *notes),
        first=first,
        new=new,
        tokens=tokens_of(tokenizer, ids[first:]),
        embedding=embedding,
        layers=layers,
        hidden=_float(found["hidden"][shown][:, channels]),
        predictions=predictions,
        lens=lensed,
        cache=cache_entries(c, [P + step for step in range(new + 1)]),
        context_length=c.context_length,
        texts=_texts(tokenizer, ids, predictions, embedding, lensed),
    )


LEVELS = ("embedding", "hidden", "logits")


def _continuation(model: GPT, params: Any, tokenizer: Tokenizer, prompt: Sequence[int], new: int) -> list[int]:
    """The ids that greedy decoding adds."""
    if new == 0:
        return []
    done = generate(
        model, params, [list(prompt)], key=jax.random.key(0), max_new_tokens=new, sampler=Greedy(), stop=tokenizer.stop
    )
    return done.tokens[0, : int(done.lengths[0])].tolist()


def _embedding(
    model: GPT, params: Any, tokens: Array, shown: slice, output: np.ndarray, channels: Sequence[int]
) -> Embedding:
    place = params["params"]["embedding"]
    rows = jnp.take(place["table"], tokens, axis=0)
    count = min(NEIGHBOURS + 1, place["table"].shape[0])  # the first is the token itself
    near, cosines = (np.asarray(found)[shown] for found in nearest_neighbours(rows, place["table"], count))
    code, positions = model.config.embedding.position, None
    if isinstance(code, Learned):
        whole = np.asarray(place["position"]["table"])
        positions = _float(whole[np.arange(shown.start, shown.stop) + code.offset][:, channels])
    return Embedding(
        rows=_float(rows)[shown][:, channels],
        positions=positions,
        output=_float(output[shown][:, channels]),
        neighbours=near.astype(np.int32),
        cosines=_float(cosines),
    )


def _predictions(logits: np.ndarray, new: int) -> Predictions:
    logits = _float(logits)
    ids, top = _best(logits, min(TOP, logits.shape[-1]))
    most = logits.max(-1)
    log_z = most + np.log(np.exp((logits - most[:, None]).astype(np.float64)).sum(-1))
    steps = logits[len(logits) - new - 1 :]
    step_ids, held = None, np.ones(len(steps), np.float32)
    if steps.size > WHOLE_LOGITS:
        z = log_z[len(logits) - new - 1 :]
        step_ids, steps = _best(steps, min(KEPT_LOGITS, logits.shape[-1]))
        held = _float(np.exp(steps - z[:, None]).sum(-1))
    return Predictions(ids, top, _float(log_z), steps, step_ids, held)


def _best(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest logits of each row, lower ids first among equals, and their ids."""
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :count].astype(np.int32)
    return ids, np.take_along_axis(logits, ids, axis=-1)


def _texts(
    tokenizer: Tokenizer, ids: Sequence[int], predictions: Predictions, embedding: Embedding, lens: Lens
) -> dict[int, str]:
    if predictions.step_ids is None:
        named = _best(predictions.steps, min(NAMED, predictions.steps.shape[-1]))[0]
    else:
        named = predictions.step_ids[:, :NAMED]
    parts = (np.asarray(ids), named, predictions.ids, embedding.neighbours, lens.ids)
    every = sorted({int(index) for part in parts for index in part.reshape(-1)})
    return {index: visible(tokenizer.decode_bytes([index])) if index < tokenizer.vocab_size else "" for index in every}


def _facts(model: GPT) -> dict[str, str]:
    c = model.config
    kinds = dict.fromkeys(type(block.attention).__name__ for block in c.blocks)
    return {
        "layers": str(c.layers),
        "width": f"{c.width:,}",
        "vocabulary": f"{c.vocab_size:,}",
        "context": f"{c.context_length:,} tokens",
        "mixers": ", ".join(kinds),
        "computes in": str(c.dtype),
    }


def _notes(model: GPT, ids: Sequence[int], first: int, channels: int, predictions: Predictions) -> list[str]:
    c, notes = model.config, []
    if first:
        notes.append(
            f"The text has {len(ids)} tokens. The last {len(ids) - first} are shown; rows of weights go on to the left."
        )
    if channels < c.width:
        notes.append(f"Vectors have {c.width:,} elements, and {channels} evenly spaced ones of each are shown.")
    if predictions.step_ids is not None:
        K = predictions.step_ids.shape[1]
        notes.append(
            f"The softmax is over the {K:,} likeliest of {c.vocab_size:,} tokens, which hold at least"
            f" {100 * float(predictions.held.min()):.2f}% of the probability at temperature 1."
        )
    if depends_on_length(c):
        notes.append("The rotation of this model depends on the length of the row: values are those of the whole text.")
    return notes


def _float(value: Any) -> np.ndarray:
    return np.asarray(value, np.float32)
