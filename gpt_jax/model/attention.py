"""Causal self-attention: multi-head, multi-query, grouped-query, with or without a cache, and the variants that are a
setting of it.

To add a kind of attention, as `Average` was added with 59 lines in three files:

1. its settings, a frozen dataclass under `AttentionConfig` (`gpt_jax/config/recurrent.py`, 12 lines: 4 of code);
2. its module, a `Mixer` in a file of its own (`average.py`, 45 lines: 12 compute, 4 say what it caches and costs);
3. its row in `registry.ATTENTIONS` (2 lines).

Configuration files and the command line, training, checkpoints, decoding and costs know it from then on. Then the
tests: its equation in `tests/reference*.py`, and its name among the choices of `tests/test_conformance.py`. A kind of
mask, position, temperature, norm or MLP is a row of a table too: `VISIBLE`, `BIASES`, `SCALINGS`, `TEMPERATURES`,
`NORMS`, `MLPS`. From outside, `register_attention` above the module takes the place of step 3.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax import config as cfg
from gpt_jax.model.attend import Logits, attend
from gpt_jax.model.convolution import convolution_shapes, convolved
from gpt_jax.model.linear import Linear
from gpt_jax.model.mask import Side, keys_per_query
from gpt_jax.model.mixer import CacheShapes, LayerCache, Mixer, Shared
from gpt_jax.model.norm import make_norm
from gpt_jax.model.parameter import Parameter
from gpt_jax.model.rope import rotate
from gpt_jax.model.row import Row
from gpt_jax.model.slots import extend, is_ring, slots
from gpt_jax.model.taps import is_tapped, tap
from gpt_jax.model.temperature import temperature


class MultiHeadAttention(Mixer):
    """x (B, T, C) → queries (B, T, H, D), keys (B, T, K, D), values (B, T, K, E) → (B, T, H·E) → (B, T, C)."""

    config: cfg.Attention

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T C"], row: Row, cache: LayerCache | None, shared: Shared, train: bool
    ) -> tuple[Float[Array, "B T C"], LayerCache | None, Shared]:
        c, (B, T, C) = self.config, x.shape
        H, K = c.heads, c.resolved_kv_heads
        D, E = c.resolved_head_width(C), c.resolved_value_width(C)
        state: LayerCache = {}  # what the cache keeps beside keys and values

        def project(name: cfg.Projection, heads: int, width: int) -> Float[Array, "B T N D"]:
            y = self._linear(name, heads * width)(x)
            if c.clip is not None:
                y = jnp.clip(y, -c.clip, c.clip)
            y = convolved(name, y, c.convolution, self.model.param_dtype, row, cache, state)
            return y.reshape(B, T, heads, width)

        queries = Side(row.steps, row.positions, row.segments, self._decay(x, row, cache, state))
        query = tap(self, "queries", self._place("query", project("query", H, D), queries, row.context))
        query = scaled(self, query, row, c.mask, c.score).swapaxes(1, 2)  # heads first, from here on

        if c.shared_kv:
            key, value, keys = shared["key_and_value"]
        else:
            key = project("key", K, D)
            if c.value_from_key:
                new = {"key": key.swapaxes(1, 2)}
            else:
                key = tap(self, "keys", self._place("key", key, queries, row.context))
                value, shared = self._blend_values(project("value", K, E), row, shared)
                new = {"key": key.swapaxes(1, 2), "value": tap(self, "values", value).swapaxes(1, 2)}
            kept, seen, keys = self._remember(new, queries, row, cache)
            if c.value_from_key:
                value = seen["key"]
                key = self._place("key", value.swapaxes(1, 2), keys, row.context).swapaxes(1, 2)
            else:
                key, value = seen["key"], seen["value"]
            if cfg.is_kv_shared(self.model.attentions):
                shared = {**shared, "key_and_value": (key, value, keys)}
            state |= kept

        heads = tap(self, "heads", self._attend(query, key, value, queries, keys, row, train))
        out = heads.swapaxes(1, 2).reshape(B, T, H * E)
        if c.gate is not None:
            gate = jax.nn.sigmoid(self._linear("gate", H * E if c.gate == "elementwise" else H)(x))
            out *= gate if c.gate == "elementwise" else jnp.repeat(gate, E, axis=-1)
        y = self._linear("output", C, self.output_scale)(out)
        return y, None if cache is None else {**cache, **state}, shared

    def _linear(self, name: str, features: int, size: float = 1.0) -> Linear:
        model = self.model
        return Linear(features, name in self.config.bias, model.init.kernel_std, model.param_dtype, size, name=name)

    def _place(self, name: str, y: Float[Array, "B T N D"], side: Side, length: int) -> Float[Array, "B T N D"]:
        """Queries or keys after their norm and rotation."""
        c, score = self.config, self.config.score
        heads = 2 if score.qk_norm_over == "heads" else 1
        norm = make_norm(score.qk_norm, self.model.param_dtype, name=f"{name}_norm", scaled_axes=heads)

        def normed(y: Array) -> Array:
            return norm(y.reshape(*y.shape[:2], -1)).reshape(y.shape) if score.qk_norm_over == "width" else norm(y)

        y = y if score.qk_norm_last else normed(y)
        if isinstance(c.position, cfg.Rope):
            y = rotate(y, side.positions, c.position, length)
        return normed(y) if score.qk_norm_last else y

    def _decay(self, x: Float[Array, "B T C"], row: Row, cache: LayerCache | None, state: LayerCache) -> Array | None:
        """Σ log f from the document's first token to each, (B, H, T), of a forget gate f = sigmoid(linear(x))."""
        if not self.config.forget_gate:
            return None
        linear = Linear(self.config.heads, True, self.model.init.kernel_std, self.model.param_dtype, name="forget")
        log_f = jax.nn.log_sigmoid(linear(x).astype(jnp.float32)).swapaxes(1, 2)
        if row.segments is None:
            decay = jnp.cumsum(log_f, axis=-1)
        else:
            # Begun anew in each document: not even a rounding error may come from another.
            begins = jnp.diff(row.segments, axis=-1, prepend=row.segments[:, :1]) != 0
            begins = jnp.broadcast_to(begins[:, None], log_f.shape)
            decay, _ = jax.lax.associative_scan(_add_unless_begun, (log_f, begins), axis=-1)
        if cache is not None:
            decay += cache["forgotten"]
            state["forgotten"] = decay[:, :, -1:]
        return decay

    def _blend_values(
        self, value: Float[Array, "B T K E"], row: Row, shared: Shared
    ) -> tuple[Float[Array, "B T K E"], Shared]:
        """The values with what comes from the token itself and from the first layer."""
        c, model = self.config, self.model
        if c.value_embedding:
            initial = nn.initializers.normal(model.init.embedding_std)
            assert model.vocab_size is not None
            shape = (model.vocab_size, math.prod(value.shape[2:]))
            table = Parameter("table", initial, shape, model.param_dtype, name="value_embedding")()
            value += jnp.take(table, row.tokens, axis=0).reshape(value.shape).astype(value.dtype)
        if c.value_residual is not None:
            initial = nn.initializers.constant(c.value_residual)
            share = Parameter("share", initial, (), model.param_dtype, name="value_residual")().astype(value.dtype)
            first = value
            if "value" in shared:
                first = jnp.where(row.layer == cfg.value_source(model.attentions), value, shared["value"])
            value, shared = value + share * (first - value), {**shared, "value": first}
        return value, shared

    def _remember(
        self, new: LayerCache, queries: Side, row: Row, cache: LayerCache | None
    ) -> tuple[LayerCache, LayerCache, Side]:
        """What the cache keeps, what there is to attend to, and where that stands."""
        if cache is None:
            return {}, new, queries
        assert row.length is not None and row.padding is not None
        if queries.decay is not None:
            new = new | {"decay": queries.decay[..., None]}
        old, ring = {name: cache[name] for name in new}, is_ring(self.config.mask, row.length)
        kept, seen, steps = extend(old, new, row.steps[0], ring)
        decay = None if queries.decay is None else seen["decay"][..., 0]
        return kept, seen, Side(steps, steps[None, :] - row.padding[:, None], None, decay)

    def _attend(
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
        if config.shared_kv:
            return {}
        H, K, S = config.heads, config.resolved_kv_heads, slots(config.mask, length)
        D, E = config.resolved_head_width(model.width), config.resolved_value_width(model.width)
        shapes: dict[str, tuple[int, ...]] = {"key": (K, S, D)}
        if not config.value_from_key:
            shapes["value"] = (K, S, E)
        caches = {name: jax.ShapeDtypeStruct(shape, jnp.dtype(model.dtype)) for name, shape in shapes.items()}
        widths = {"query": H * D, "key": K * D} | ({} if config.value_from_key else {"value": K * E})
        caches |= convolution_shapes(config.convolution, model.dtype, **widths)
        if config.forget_gate:  # sums, which must not round
            caches["decay"] = jax.ShapeDtypeStruct((H, S, 1), jnp.float32)
            caches["forgotten"] = jax.ShapeDtypeStruct((H, 1), jnp.float32)
        return caches

    @staticmethod
    def mixing_flops(config: cfg.Attention, model: cfg.ModelConfig, context: int) -> int:
        """Scores and the mean of the values, for each key that is seen."""
        C = model.width
        widths = config.resolved_head_width(C) + config.resolved_value_width(C)
        return round(2 * config.heads * widths * keys_per_query(config.mask, context))


def attended(
    module: nn.Module,
    c: cfg.Attention | cfg.Latent,
    query: Float[Array, "B H T D"],
    key: Float[Array, "B K S D"],
    value: Float[Array, "B K S E"],
    queries: Side,
    keys: Side,
    row: Row,
    train: bool,
) -> Float[Array, "B H T E"]:
    """`attend` with the parameters, taps and dropout of `module`."""
    model, score, H = module.model, c.score, query.shape[1]  # type: ignore[attr-defined]
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
        kernel=None if module.is_initializing() else model.kernel,  # of however few tokens
        offset=offset,
        drop=(lambda p: dropout(p, deterministic=False)) if train and c.dropout else None,
        watch=(lambda p: tap(module, "probabilities", p)) if is_tapped(module) else None,
    )


def scaled(
    module: Mixer, query: Float[Array, "B T H D"], row: Row, mask: cfg.MaskConfig, score: cfg.Score
) -> Float[Array, "B T H D"]:
    """Queries times the scale and the temperature of `module`."""
    scale = jnp.asarray(query.shape[-1] ** -0.5 if score.scale is None else score.scale, jnp.float32)
    if score.temperature is not None:
        scale = scale * temperature(score.temperature, mask, row.positions, query.shape[2], module.model.param_dtype)
    return query * scale.astype(query.dtype)


def _add_unless_begun(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    return jnp.where(b[1], b[0], a[0] + b[0]), a[1] | b[1]
