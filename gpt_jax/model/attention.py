"""Causal self-attention: multi-head, multi-query and grouped-query, with or without a cache.

The plain layer is `MultiHeadAttention.__call__`: project, norm and rotate, attend, project. Scores, mask, softmax and
the mean of the values are `einsum_attention` in `attend.py`, on one screen. The variants are calls into tables.

To add a kind of attention, as `Average` was added in three files:

1. its settings, a frozen dataclass under `AttentionConfig` (`gpt_jax/config/recurrent.py`: 4 lines of code);
2. its module, a `Mixer` in a file of its own (`average.py`: 12 lines compute, 4 say what it caches and costs);
3. its row in `registry.ATTENTIONS`. From outside the package, `register_attention` above the module replaces this step.

To add a choice within a layer, a dataclass in `gpt_jax/config/` and, in one file of `gpt_jax/model/`, a function and
its row in a table:

- a mask: `config/score.py`, and `VISIBLE` in `mask.py`;
- where keys and values come from: `config/values.py`, and `VALUES` in `values.py` (its neighbours `EMBEDDINGS` and
  `RESIDUALS` are for what is added to values), or `OUTPUT_GATES` in `gate.py`;
- a temperature: `config/score.py`, and `TEMPERATURES` in `temperature.py`; a position scheme: `config/position.py`, and
  `BIASES` in `bias.py` or `SCALINGS` in `rope.py`;
- a norm: `config/norm.py`, and `NORMS` in `norm.py`; an MLP: `config/model.py`, `mlp.py`, and `MLPS` in `block.py`.

Configuration files and the command line, training, checkpoints, decoding and costs know it from then on. Then come the
tests: its equation in `tests/reference*.py`, and its name among the choices of `tests/test_conformance.py`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from gpt_jax import config as cfg
from gpt_jax.config.variant import implementation
from gpt_jax.model.attend import Logits, Tap, attend
from gpt_jax.model.convolution import convolution_shapes, convolved
from gpt_jax.model.gate import OUTPUT_GATES, forget_sums
from gpt_jax.model.linear import Linear
from gpt_jax.model.mask import Side, keys_per_query
from gpt_jax.model.mixer import CacheShapes, Carry, Mixer
from gpt_jax.model.norm import make_norm
from gpt_jax.model.parameter import Parameter
from gpt_jax.model.rope import rotate
from gpt_jax.model.row import Row
from gpt_jax.model.slots import LayerCache, is_ring, slots
from gpt_jax.model.taps import is_captured, is_edited, tap
from gpt_jax.model.temperature import temperature
from gpt_jax.model.values import VALUES


class MultiHeadAttention(Mixer):
    """x (B, T, C) → queries (B, T, H, D), keys (B, S, K, D), values (B, S, K, E) → (B, T, H·E) → (B, T, C)."""

    config: cfg.Attention

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T C"], row: Row, cache: LayerCache | None, shared: Carry, train: bool
    ) -> tuple[Float[Array, "B T C"], LayerCache | None, Carry]:
        c, C = self.config, x.shape[-1]
        H, D, E = c.heads, c.resolved_head_width(C), c.resolved_value_width(C)
        decay, cache = forget_sums(self, x, row, cache) if c.forget_gate else (None, cache)
        queries = Side(row.steps, row.positions, row.segments, decay)

        query, cache = self.project("query", x, H, D, row, cache)
        query = tap(self, "queries", self.place("query", query, row.positions, row.context))
        query = scaled(self, query, row, c.mask, c.score)
        (key, value, keys), cache, shared = implementation(VALUES, c.value)(self, x, queries, row, cache, shared)
        if cfg.is_kv_shared(self.model.attentions):
            shared = {**shared, "key_and_value": (key, value, keys)}

        heads = self.attend(query.swapaxes(1, 2), key, value, queries, keys, row, train)
        heads = tap(self, "heads", heads, heads_first=True)
        out = heads.swapaxes(1, 2)
        if c.gate is not None:
            out *= tap(self, "gate", implementation(OUTPUT_GATES, c.gate)(self.linear, x, H, E).reshape(out.shape))
        return self.linear("output", C, self.output_scale, heads=True)(out), cache, shared

    def linear(self, name: str, features: int | tuple[int, int], size: float = 1.0, heads: bool = False) -> Linear:
        """The product with the kernel `name`."""
        init, dtype = self.model.init, self.model.param_dtype
        return Linear(features, name in self.config.bias, init.kernel_std, dtype, size, heads, name=name)

    def project(
        self, name: cfg.Projection, x: Float[Array, "B T C"], heads: int, width: int, row: Row, cache: LayerCache | None
    ) -> tuple[Float[Array, "B T N D"], LayerCache | None]:
        """Queries, keys or values, and the cache with what their convolution looks back on."""
        c = self.config
        y = self.linear(name, (heads, width))(x)
        if c.clip is not None:
            y = jnp.clip(y, -c.clip, c.clip)
        y, cache = convolved(name, y.reshape(*x.shape[:2], -1), c.convolution, self.model.param_dtype, row, cache)
        return y.reshape(*x.shape[:2], heads, width), cache

    def place(
        self, name: cfg.Projection, y: Float[Array, "B T N D"], positions: Int[Array, "b T"], length: int
    ) -> Float[Array, "B T N D"]:
        """Queries or keys after their norm and rotation; `length` is the declared one of the row."""
        c, score = self.config, self.config.score
        axes = 2 if score.qk_norm_over == "heads" else 1
        norm = make_norm(score.qk_norm, self.model.param_dtype, name=f"{name}_norm", scaled_axes=axes)

        def normed(y: Array) -> Array:
            return norm(y.reshape(*y.shape[:2], -1)).reshape(y.shape) if score.qk_norm_over == "width" else norm(y)

        plural = {"query": "queries", "key": "keys"}[name]
        y = tap(self, f"{plural}_unrotated", y if score.qk_norm_last else normed(y))
        if isinstance(c.position, cfg.Rope):
            y = rotate(y, positions, c.position, length)
        return normed(y) if score.qk_norm_last else y

    def attend(
        self,
        query: Float[Array, "B H T D"],
        key: Float[Array, "B K S D"],
        value: Float[Array, "B K S E"],
        queries: Side,
        keys: Side,
        row: Row,
        train: bool,
    ) -> Float[Array, "B H T E"]:
        """Each head's output."""
        return attended(self, self.config, query, key, value, queries, keys, row, train)

    @staticmethod
    def cache_shapes(config: cfg.Attention, model: cfg.ModelConfig, length: int) -> CacheShapes:
        """The slots of what the layer projects itself, what its convolutions look back on, and a forget gate's sums."""
        H, K, S = config.heads, config.resolved_kv_heads, slots(config.mask, length)
        D, E = config.resolved_head_width(model.width), config.resolved_value_width(model.width)
        made: dict[str, int] = {name: {"key": D, "value": E}[name] for name in config.value.made}
        dtype, widths = jnp.dtype(model.dtype), {"query": H * D} | {name: K * width for name, width in made.items()}
        shapes = {name: jax.ShapeDtypeStruct((K, S, width), dtype) for name, width in made.items()}
        shapes |= convolution_shapes(config.convolution, model.dtype, **widths)
        if config.forget_gate:  # sums, which must not round
            shapes["decay"] = jax.ShapeDtypeStruct((H, S, 1), jnp.float32)
            shapes["forgotten"] = jax.ShapeDtypeStruct((H, 1), jnp.float32)
        return shapes

    @staticmethod
    def mixing_flops(config: cfg.Attention, model: cfg.ModelConfig, context: int) -> int:
        """Scores and the mean of the values, for each key that is seen."""
        C = model.width
        widths = config.resolved_head_width(C) + config.resolved_value_width(C)
        return round(2 * config.heads * widths * keys_per_query(config.mask, context))


def attended(
    layer: Mixer,
    c: cfg.Attention | cfg.Latent,
    query: Float[Array, "B H T D"],
    key: Float[Array, "B K S D"],
    value: Float[Array, "B K S E"],
    queries: Side,
    keys: Side,
    row: Row,
    train: bool,
) -> Float[Array, "B H T E"]:
    """`attend` with the parameters, taps and dropout of `layer`."""
    model, score, H = layer.model, c.score, query.shape[1]
    table, sinks, shift = None, None, 0.0
    if isinstance(c.position, cfg.T5Bias):
        initial = nn.initializers.normal(model.init.embedding_std)
        table = Parameter("table", initial, (c.position.buckets, H), model.param_dtype, name="position")()
    if score.normalizer == "sinks":
        sinks = Parameter("logits", nn.initializers.zeros, (H,), model.param_dtype, name="sinks")()
    elif score.normalizer == "softmax_plus_one":
        sinks = jnp.zeros(H)
    elif score.normalizer == "sigmoid":
        shift = -math.log(model.context_length)
    dropout = nn.Dropout(c.dropout, name="dropout")
    offset: Any = 0
    if row.length is not None:
        offset = None if is_ring(c.mask, row.length) else row.steps[0]
    return attend(
        query,
        key,
        value,
        queries,
        keys,
        Logits(table, row.padding, row.prefix, c.mask, c.position, score.softcap, shift),
        normalizer="sigmoid" if score.normalizer == "sigmoid" else "softmax",
        sinks=sinks,
        kernel=None if layer.is_initializing() else model.kernel,  # `init` may trace a row too short for the kernel
        offset=offset,
        drop=(lambda p: dropout(p, deterministic=False)) if train and c.dropout else None,
        tap=_tap_of(layer),
    )


def _tap_of(layer: Mixer) -> Tap | None:
    """The taps of `layer` inside `attend`; None if the call neither captures nor edits one."""
    names = ("scores", "logits", "probabilities")
    edits = is_edited(layer, *names)
    return Tap(partial(tap, layer, heads_first=True), edits) if edits or is_captured(layer, *names) else None


def scaled(
    layer: Mixer, query: Float[Array, "B T H D"], row: Row, mask: cfg.MaskConfig, score: cfg.Score
) -> Float[Array, "B T H D"]:
    """Queries times the scale and the temperature of `layer`."""
    scale = jnp.asarray(query.shape[-1] ** -0.5 if score.scale is None else score.scale, jnp.float32)
    if score.temperature is not None:
        scale = scale * temperature(score.temperature, mask, row.positions, query.shape[2], layer.model.param_dtype)
    return query * scale.astype(query.dtype)
