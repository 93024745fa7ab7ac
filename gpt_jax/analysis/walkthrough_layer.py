"""What happened in each layer of one text: the tapped values, sampled down to what a page can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Int

from gpt_jax.analysis.capture import read, tap_shapes
from gpt_jax.analysis.effective import effective_attention
from gpt_jax.analysis.walkthrough_rule import Rules, rules_of
from gpt_jax.config import Differential, Shared
from gpt_jax.model.gpt import GPT


@dataclass(frozen=True)
class Limits:
    """The most that is shown of one model: tokens, layers, heads of a layer, elements of a vector of width C or F, and
    bytes of the values of all layers. Over that many bytes, heads are left out first, then layers.
    """

    positions: int = 64
    layers: int = 8
    heads: int = 8
    channels: int = 64
    bytes: int = 9_000_000


@dataclass(frozen=True)
class Layer:
    """One layer. `values` maps names of taps (within the block, and `input`) to arrays: (T, c) for vectors, (n, T, …)
    for what each of the first n heads has. `keys_of[h]` is the place of head h's keys and values in `attention/keys`
    and `attention/values`, and `queries_of[h]` that of its queries. `weights` names the values that mix tokens:
    "attention/probabilities", "attention/effective" or None. `heads` and `kv_heads` count those of the model.
    `keys_from` is the layer whose keys and values this one reads, None for its own. `factor` (n, T) is what q·k is
    multiplied by. `channels` are the elements of vectors of width C that are shown.
    """

    index: int
    rules: Rules
    heads: int
    kv_heads: int
    queries_of: tuple[int, ...]
    keys_of: tuple[int, ...]
    keys_from: int | None
    weights: str | None
    factor: np.ndarray | None
    channels: tuple[int, ...]
    values: dict[str, np.ndarray]

    @property
    def bytes(self) -> int:
        """The size of its values."""
        return sum(value.size * 4 for value in self.values.values())


MAPS = ("scores", "logits", "probabilities", "effective")  # (H, T, S)
BY_HEAD = ("heads", "log_decay")  # heads first already: (H, T, …)
TOKENS_FIRST = ("queries_unrotated", "keys_unrotated", "queries", "keys", "values", "gate", "betas", "output/by_head")
KEY_SIDE = ("keys_unrotated", "keys", "values")
QUERY_SIDE = ("queries_unrotated", "queries")


def sampled_channels(width: int, limits: Limits) -> tuple[int, ...]:
    """Up to `limits.channels` evenly spaced indices below `width`."""
    count = min(width, limits.channels)
    return tuple(i * width // count for i in range(count))


def read_layers(
    model: GPT,
    params: Any,
    tokens: Int[Array, "1 N"],
    length: int,
    first: int,
    limits: Limits,
    options: Mapping[str, Any],
) -> tuple[tuple[Layer, ...], list[str]]:
    """The layers that are shown, from position `first` on, and sentences on what is left out. The first `length` of the
    N tokens are the text, the others padding.
    """
    L = model.config.layers
    shapes = tap_shapes(model, params, tokens, **options)
    count = min(L, limits.layers)
    chosen = sorted({round(i * (L - 1) / max(count - 1, 1)) for i in range(count)})
    sources = {layer: _source(model, layer) for layer in chosen}
    wanted = [name for name in shapes if _is_wanted(name, chosen, sources)]
    found = {name: value[0] for name, value in read(model, params, tokens, wanted, **options).items()}
    for layer in chosen:
        if (weights := _effective(model, params, tokens, layer, shapes, options)) is not None:
            found[f"blocks/{layer}/attention/effective"] = weights
    found = {name: _text_of(name, value, length) for name, value in found.items()}

    heads = limits.heads
    while True:
        layers = tuple(
            _layer(model, layer, found, first, sources[layer], dataclasses.replace(limits, heads=heads))
            for layer in chosen
        )
        size = sum(layer.bytes for layer in layers)
        if size <= limits.bytes or (heads == 1 and len(chosen) == 1):
            break
        if heads > 1:
            heads -= 1
        else:
            chosen = chosen[: len(chosen) // 2] + chosen[len(chosen) // 2 + 1 :]
    return layers, _left_out(L, layers)


def _text_of(name: str, value: np.ndarray, length: int) -> np.ndarray:
    """A value of one row without what it has of the padding."""
    name = name.rpartition("/attention/")[2]
    if name in MAPS:
        return value[:, :length, :length]
    return value[:, :length] if name in BY_HEAD else value[:length]


def _left_out(L: int, layers: Sequence[Layer]) -> list[str]:
    notes = []
    if len(layers) < L:
        notes.append(f"Of {L} layers, {len(layers)} are shown: {', '.join(str(layer.index) for layer in layers)}.")
    fewer = [layer for layer in layers if len(layer.keys_of) < layer.heads]
    if fewer:
        most = max(fewer, key=lambda layer: layer.heads)
        notes.append(f"Of {most.heads} heads of a layer, the first {len(most.keys_of)} are shown.")
    return notes


def _source(model: GPT, layer: int) -> int | None:
    """The layer whose keys and values `layer` reads; None for its own."""

    def reads(i: int) -> bool:
        return isinstance(getattr(model.config.blocks[i].attention, "value", None), Shared)

    return next((i for i in range(layer - 1, -1, -1) if not reads(i)), None) if reads(layer) else None


def _is_wanted(name: str, chosen: Sequence[int], sources: Mapping[int, int | None]) -> bool:
    if not name.startswith("blocks/"):
        return name == "embedding"
    _, number, rest = name.split("/", 2)
    if int(number) in chosen:
        return rest != "attention/state"
    as_input = rest == "output" and int(number) + 1 in chosen
    return as_input or (int(number) in sources.values() and rest in ("attention/keys", "attention/values"))


def _effective(
    model: GPT, params: Any, tokens: Array, layer: int, shapes: Mapping[str, Any], options: Mapping[str, Any]
) -> np.ndarray | None:
    """The effective attention (H, T, T) of a mixer without probabilities; None where it has none."""
    place = f"blocks/{layer}/attention"
    is_exact = f"{place}/values" in shapes and f"{place}/heads" in shapes and f"{place}/probabilities" not in shapes
    if not is_exact or isinstance(model.config.blocks[layer].attention, Differential):
        return None
    return effective_attention(model, params, tokens, layer, **options)[0]


def _layer(
    model: GPT, index: int, found: Mapping[str, np.ndarray], first: int, source: int | None, limits: Limits
) -> Layer:
    place = f"blocks/{index}/"
    before = found["embedding"] if index == 0 else found[f"blocks/{index - 1}/output"]
    own = {"input": before} | {name.removeprefix(place): v for name, v in found.items() if name.startswith(place)}
    if source is not None:
        own |= {f"attention/{name}": found[f"blocks/{source}/attention/{name}"] for name in ("keys", "values")}
    outputs, keys = own.get("attention/heads"), own.get("attention/keys", own.get("attention/values"))
    H = 1 if outputs is None else outputs.shape[0]
    K = _heads_of(keys, H)
    Q = _heads_of(own.get("attention/queries"), H)
    n = min(H, limits.heads)
    keys_of, queries_of = (tuple(h * count // H for h in range(n)) for count in (K, Q))
    values = {
        name: _sampled(name.removeprefix("attention/"), value, first, n, keys_of[-1] + 1, queries_of[-1] + 1, limits)
        for name, value in own.items()
    }
    kinds = ("attention/probabilities", "attention/effective")
    return Layer(
        index=index,
        rules=rules_of(model.config, index),
        heads=H,
        kv_heads=K,
        queries_of=queries_of,
        keys_of=keys_of,
        keys_from=source,
        weights=next((kind for kind in kinds if kind in values), None),
        factor=_factor(model, index, values, queries_of, keys_of),
        channels=sampled_channels(model.config.width, limits),
        values=values,
    )


def _heads_of(value: np.ndarray | None, H: int) -> int:
    """The number of heads of (T, N, D); 1 of (T, D), and H where there is no such value."""
    return H if value is None else value.shape[1] if value.ndim == 3 else 1


def _sampled(
    name: str, value: np.ndarray, first: int, heads: int, keys: int, queries: int, limits: Limits
) -> np.ndarray:
    """What is shown of a value, in float32: heads first, then tokens."""
    if name in MAPS:
        value = value[:heads, first:, first:]
    elif name in BY_HEAD:
        value = value[:heads, first:]
    elif name in TOKENS_FIRST:
        value = value[:, None] if value.ndim == 2 and name != "betas" else value
        if name == "gate":  # one number for each head or each element
            value = value.reshape(len(value), value.shape[1], -1)
        value = np.moveaxis(value, 1, 0)
        value = value[: keys if name in KEY_SIDE else queries if name in QUERY_SIDE else heads, first:]
    elif value.ndim >= 2:
        value = value.reshape(len(value), -1)[first:]
    if name not in (*MAPS, *KEY_SIDE, *QUERY_SIDE) and value.ndim >= 2:
        value = value[..., list(sampled_channels(value.shape[-1], limits))] if name not in BY_HEAD else value
    return np.ascontiguousarray(value, np.float32)


def _factor(
    model: GPT, index: int, values: Mapping[str, np.ndarray], queries_of: Sequence[int], keys_of: Sequence[int]
) -> np.ndarray | None:
    """What q·k is multiplied by (n, T); None without scores. A temperature differs between queries: it is read off the
    scores themselves.
    """
    needed = ("attention/scores", "attention/queries", "attention/keys")
    if not all(name in values for name in needed):
        return None
    scores, queries, keys = (values[name] for name in needed)
    score = model.config.blocks[index].attention.score  # type: ignore[attr-defined]
    if score.temperature is None:
        scale = queries.shape[-1] ** -0.5 if score.scale is None else score.scale
        return np.full(scores.shape[:2], scale, np.float32)
    dots = np.einsum("htd,hsd->hts", queries[list(queries_of)].astype(np.float64), keys[list(keys_of)])
    return np.asarray((scores * dots).sum(-1) / np.maximum((dots**2).sum(-1), 1e-30), np.float32)
