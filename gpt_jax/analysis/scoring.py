"""Log-likelihoods of continuations after contexts, for suites of many questions of different lengths.

Questions of about the same length go into one batch, and each length class (a power of two) has one compiled program.
Contexts that several continuations share are processed once, and their cache is repeated for each continuation.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import lru_cache, partial
from itertools import chain
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from gpt_jax.config import depends_on_length, has_prefix
from gpt_jax.config.errors import UserError
from gpt_jax.config.mesh import SEQUENCE
from gpt_jax.data import Batch
from gpt_jax.decoding.generate import bucket
from gpt_jax.model.cache import init_cache
from gpt_jax.model.gpt import GPT, check_range
from gpt_jax.training.evaluate import weighted_terms
from gpt_jax.training.loss import cross_entropy
from gpt_jax.training.partition import row_parts
from gpt_jax.training.sharding import replicated, row_share, shard_batch, traced_under

SHORTEST_SHARED = 32  # tokens of a context from which on a cache of it is worth a program of its own

Ids = Sequence[int]


class Score(NamedTuple):
    """The log-likelihood of a continuation in nats, and whether each of its tokens is the model's first choice."""

    loglikelihood: float
    is_greedy: bool


class Scorer:
    """Scores continuations with a model whose parameters lie on `mesh`; about `batch_size` rows go at a time.

    The batch size and the other questions change results by rounding alone. All processes of a mesh must score the same
    questions. `max_length` is the number of tokens that the model sees at once (None: its context length).
    """

    def __init__(self, model: GPT, params: Any, mesh: Mesh, batch_size: int, max_length: int | None = None) -> None:
        if batch_size < 1:
            raise UserError(f"the batch size must be at least 1, not {batch_size}")
        self.model, self.params, self.mesh = model, params, mesh
        self.max_length = model.config.context_length if max_length is None else max_length
        self._parts = row_parts(mesh)
        self.rows = -(-batch_size // self._parts) * self._parts
        whole = depends_on_length(model.config) or has_prefix(model.config) or SEQUENCE in mesh.shape
        self._shares = not whole  # else contexts must be processed with their continuations
        self._terms, self._after = _programs(model, mesh)

    def of(self, params: Any) -> Scorer:
        """The same with other parameters."""
        scorer = copy(self)
        scorer.params = params
        return scorer

    def __call__(self, questions: Sequence[tuple[Ids, Ids]]) -> list[Score]:
        """The score of each (context, continuation).

        A context that does not fit the model's context length with its continuation loses its first tokens. In models
        with masks of type `Prefix`, the context is the prefix.

        Raises:
          UserError: a context or continuation is empty, has an id outside [0, V), or a continuation is longer than the
            model's context length.
        """
        fitted = [self._fit(*question) for question in questions]
        scores: dict[int, Score] = {}
        shared, alone = self._divide(fitted)
        for numbers, terms in chain(self._in_rows(fitted, alone), self._in_groups(fitted, shared)):
            # In float64: sums of hundreds of nats in float32 would differ in their fourth decimal.
            nll, hits, weight = (term.astype(np.float64).sum(axis=1) for term in terms)
            for b, i in enumerate(numbers):  # blank rows follow
                scores[i] = Score(-float(nll[b]), bool(hits[b] == weight[b]))
        return [scores[i] for i in range(len(questions))]

    def terms(self, batch: Batch) -> list[Float[np.ndarray, "B T"]]:
        """weight · nll in nats, weight · hits and the weight of each target of `rows` rows."""
        return [np.asarray(term) for term in self._terms(self.params, self._placed(batch))]

    def _fit(self, context: Ids, continuation: Ids) -> tuple[list[int], list[int]]:
        if not len(context) or not len(continuation):
            raise UserError("a context and its continuation need at least one token each: begin texts with a prefix")
        if len(continuation) > self.max_length:
            raise UserError(
                f"a continuation of {len(continuation)} tokens exceeds the context length of {self.max_length}"
            )
        check_range("token id", np.concatenate([context, continuation]), self.model.config.vocab_size)
        room = self.max_length + 1 - len(continuation)
        return list(context)[-room:], list(continuation)

    def _divide(self, questions: list[tuple[list[int], list[int]]]) -> tuple[list[list[int]], list[int]]:
        """The numbers of the questions in groups that share a long context, and of those that go alone."""
        by_context: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, question in enumerate(questions):
            by_context[tuple(question[0])].append(i)
        shared: list[list[int]] = []
        alone: list[int] = []
        for context, numbers in by_context.items():
            T = bucket(max(len(questions[i][1]) for i in numbers))
            fits = len(context) - 1 + T <= self.max_length
            if self._shares and fits and len(numbers) > 1 and len(context) > SHORTEST_SHARED:
                shared += [numbers[k : k + self.rows] for k in range(0, len(numbers), self.rows)]
            else:
                alone += numbers
        return shared, alone

    def _in_rows(self, questions: list[tuple[list[int], list[int]]], numbers: list[int]) -> Iterator[Any]:
        """(numbers, terms (B, T)) of questions that go alone, the longest first."""
        classes: dict[int, list[int]] = defaultdict(list)
        for i in numbers:
            classes[self._width(sum(map(len, questions[i])) - 1)].append(i)
        for T, members in sorted(classes.items(), reverse=True):
            for k in range(0, len(members), self.rows):
                batch = blank(self.rows, T)
                for b, i in enumerate(members[k : k + self.rows]):
                    put(batch, b, *questions[i])
                yield members[k : k + self.rows], self.terms(batch)

    def _in_groups(self, questions: list[tuple[list[int], list[int]]], groups: list[list[int]]) -> Iterator[Any]:
        """(numbers, terms (N, T)) of groups of questions with a common context."""
        classes: dict[tuple[int, int, int], list[list[int]]] = defaultdict(list)
        for group in groups:
            T = bucket(max(len(questions[i][1]) for i in group))
            P = min(bucket(len(questions[group[0]][0]) - 1), self.max_length - T)
            classes[P, T, 1 << (len(group) - 1).bit_length()].append(group)
        for (P, T, K), members in sorted(classes.items(), reverse=True):
            G = -(-max(self.rows // K, 1) // self._parts) * self._parts
            for k in range(0, len(members), G):
                contexts, batch = blank(G, P), blank(G * K, T)
                padding, rows = np.full((G, 1), P - 1, np.int32), np.full(G * K, -1)
                for g, group in enumerate(members[k : k + G]):
                    (*before, last), _ = questions[group[0]]
                    contexts.tokens[g, P - len(before) :], padding[g] = before, P - len(before)
                    for b, i in enumerate(group, start=g * K):
                        put(batch, b, [last], questions[i][1])
                        rows[b] = i
                placed = self._placed(contexts).tokens, self._spread(padding), self._placed(batch)
                terms = self._after(self.params, *placed)
                yield rows[rows >= 0].tolist(), [np.asarray(term)[rows >= 0] for term in terms]

    def _width(self, length: int) -> int:
        return length if depends_on_length(self.model.config) else min(bucket(length), self.max_length)

    def _placed(self, batch: Batch) -> Batch:
        """This process's share of the rows, on its devices."""
        index, count = row_share(self.mesh)
        rows = len(batch.tokens) // count
        return shard_batch(jax.tree.map(lambda x: x[index * rows : (index + 1) * rows], batch), self.mesh, "jit")

    def _spread(self, values: Int[np.ndarray, "G 1"]) -> Array:
        return self._placed(Batch(values, values, values.astype(np.float32))).tokens[:, 0]


@lru_cache(maxsize=16)
def _programs(model: GPT, mesh: Mesh) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`weighted_terms` and `_terms_after`, compiled once for all scorers of a model."""
    alone, after = (traced_under(mesh, partial(terms, model)) for terms in (weighted_terms, _terms_after))
    return jax.jit(alone, out_shardings=replicated(mesh)), jax.jit(after, out_shardings=replicated(mesh))


def blank(rows: int, length: int) -> Batch:
    """Rows (B, T) in which no target counts."""
    zeros = np.zeros((rows, length), np.int32)
    return Batch(zeros, zeros.copy(), zeros.astype(np.float32))


def put(batch: Batch, row: int, context: Ids, continuation: Ids) -> None:
    """Writes a question at the beginning of a row; the tokens of the continuation are its targets."""
    ids = np.array([*context, *continuation])
    batch.tokens[row, : len(ids) - 1], batch.targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
    batch.weights[row, len(context) - 1 : len(ids) - 1] = 1


def _terms_after(
    model: GPT, params: Any, contexts: Int[Array, "G P"], padding: Int[Array, " G"], batch: Batch
) -> tuple[Float[Array, "N T"], ...]:
    """As `weighted_terms`, of N = G · K rows of which K each follow one context, left-padded to P tokens."""
    (G, P), (N, T) = contexts.shape, batch.tokens.shape
    cache = init_cache(model.config, G, P + T, padding)
    _, cache = cast(Any, model.apply(params, contexts, cache=cache, method="backbone"))
    repeated = jax.tree.map(lambda x: jnp.repeat(x, N // G, axis=0), (cache.layers, cache.padding))
    cache = dataclasses.replace(cache, layers=repeated[0], padding=repeated[1])
    logits, _ = cast(Any, model.apply(params, batch.tokens, cache=cache))
    nll, _, hit = cross_entropy(logits, batch.targets)
    return batch.weights * nll, batch.weights * hit, batch.weights
