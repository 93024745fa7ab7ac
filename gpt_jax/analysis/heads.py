"""What each attention head looks at: a table of numbers, one row for each layer and head, of attention of any kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from gpt_jax.analysis.capture import read, tap_shapes
from gpt_jax.analysis.effective import effective_attention
from gpt_jax.model.gpt import GPT

Table = dict[str, np.ndarray]  # column → values; `pandas.DataFrame` takes it as it is

TINY = 1e-30


def head_table(
    model: GPT, params: Any, tokens: Int[Array, "B T"], *, mesh: Mesh | None = None, **options: Any
) -> Table:
    """The `head_scores` of every layer and head, in the columns `layer`, `head` and one for each score.

    Softmax attention is read as probabilities, every other kind as its effective attention. Layers that mix positions
    in neither form, or read the values of another layer without probabilities of their own, are left out. `options` are
    those of `model.apply`; with `segments`, scores of tokens are those within documents. `mesh` is that of `read`.
    """
    shapes = tap_shapes(model, params, tokens, **options)
    captured = [name for name in shapes if name.endswith(("/attention/probabilities", "/attention/logits"))]
    found = read(model, params, tokens, captured, mesh=mesh, **options) if captured else {}
    ids = np.asarray(tokens)
    segments = np.zeros_like(ids) if options.get("segments") is None else np.asarray(options["segments"])
    rows: list[Table] = []
    for layer in range(model.config.layers):
        place = f"blocks/{layer}/attention"
        if f"{place}/probabilities" in found:
            weights, logits = found[f"{place}/probabilities"], found[f"{place}/logits"]
        elif f"{place}/values" in shapes:
            weights, logits = effective_attention(model, params, tokens, layer, mesh=mesh, **options), None
        else:
            continue
        scores = head_scores(weights, ids, segments, logits)
        H = weights.shape[1]
        rows.append({"layer": np.full(H, layer), "head": np.arange(H)} | scores)
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]} if rows else {}


def head_scores(
    weights: Float[np.ndarray, "B H T T"],
    tokens: Int[np.ndarray, "B T"],
    segments: Int[np.ndarray, "B T"],
    logits: Float[np.ndarray, "B H T T"] | None,
) -> dict[str, Float[np.ndarray, " H"]]:
    """For each head, means over rows and queries (where no query qualifies, NaN):

    `entropy` in nats and `distance` in tokens, of the distribution |w| / Σ|w|; `first_token`, the mass on the first
    token of the document, of the queries after it; `sink`, the mass on no token at all (1 − Σ w); `previous_token`;
    `duplicate_token`, the mass on earlier occurrences of the query's token, of queries that have some; `induction`, the
    mass on the tokens that followed those (Olsson et al. 2022, arXiv:2209.11895); `effective_rank`, exp of the entropy
    of the singular values as shares (Roy & Vetterli 2007); and `largest_logit` before the softmax (NaN without one).
    """
    w = weights.astype(np.float64)
    T = tokens.shape[1]
    share = np.abs(w) / np.maximum(np.abs(w).sum(-1, keepdims=True), TINY)
    steps = np.arange(T)
    earlier = steps[:, None] > steps
    together = segments[:, :, None] == segments[:, None, :]
    equal = (tokens[:, :, None] == tokens[:, None, :]) & together & earlier  # (B, query, key)
    followed = np.pad(equal, ((0, 0), (0, 0), (1, 0)))[..., :T] & together  # the key after an equal one
    is_start = np.diff(segments, axis=1, prepend=segments[:, :1] - 1) != 0
    first = together & is_start[:, None, :] & earlier
    before = together & (steps[:, None] - 1 == steps)
    singular = np.linalg.svd(w, compute_uv=False)
    spectrum = singular / np.maximum(singular.sum(-1, keepdims=True), TINY)
    visible = None if logits is None else np.where(logits > -1e29, logits, -np.inf)
    return {
        "entropy": _entropy(share).mean((0, 2)),
        "distance": (share * np.abs(steps[:, None] - steps)).sum(-1).mean((0, 2)),
        "first_token": _mass(w, first),
        "sink": (1 - w.sum(-1)).mean((0, 2)),
        "previous_token": _mass(w, before),
        "duplicate_token": _mass(w, equal),
        "induction": _mass(w, followed),
        "effective_rank": np.exp(_entropy(spectrum)).mean(0),
        "largest_logit": np.full(w.shape[1], np.nan) if visible is None else visible.max((0, 2, 3)).astype(np.float64),
    }


def _mass(w: Float[np.ndarray, "B H T T"], keys: Bool[np.ndarray, "B T T"]) -> Float[np.ndarray, " H"]:
    """The mean, over queries with at least one of `keys`, of the weight on them."""
    queries = keys.any(-1)
    count = queries.sum()
    return (w * keys[:, None]).sum((0, 2, 3)) / (count if count else np.nan)


def _entropy(p: Float[np.ndarray, "*batch N"]) -> Float[np.ndarray, "*batch"]:
    return -np.sum(p * np.log(np.maximum(p, TINY)), axis=-1)
