"""Multi-head latent attention: one short vector is cached for each token (DeepSeek-V2 2024, arXiv:2405.04434)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax import config as cfg
from gpt_jax.model.attention import attended, scaled
from gpt_jax.model.linear import Linear
from gpt_jax.model.mask import Side, keys_per_query
from gpt_jax.model.mixer import CacheShapes, Carry, Mixer
from gpt_jax.model.norm import make_norm
from gpt_jax.model.parameter import Parameter
from gpt_jax.model.placement import flattened
from gpt_jax.model.rope import rotate
from gpt_jax.model.row import Row
from gpt_jax.model.slots import LayerCache, extend, slots
from gpt_jax.model.taps import tap


class LatentAttention(Mixer):
    """x (B, T, C) → latents (B, T, R) → keys (B, T, H, D) and values (B, T, H, E). Each query also has a rotated part
    of width P, and all heads share one rotated key of that width.

    Keys and values are linear in the latent. For a single query against a cache, their kernels are therefore multiplied
    with the query and with the output instead (the absorbed form): attention with one key head, (latent, rotated key),
    whose value is the latent. The numbers are the same, and nothing of size S·H is made.
    """

    config: cfg.Latent

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T C"], row: Row, cache: LayerCache | None, shared: Carry, train: bool
    ) -> tuple[Float[Array, "B T C"], LayerCache | None, Carry]:
        c, model, (B, T, C) = self.config, self.model, x.shape
        H, R, D, P, E = c.heads, c.rank, c.head_width, c.rotary_width, c.resolved_value_width
        std, dtype = model.init.kernel_std, model.param_dtype
        queries = Side(row.steps, row.positions, row.segments)

        down = x
        if c.query_rank is not None:
            down = Linear(c.query_rank, c.bias, std, dtype, name="query_latent")(x)
            down = make_norm(c.norm, dtype, name="query_latent_norm")(down)
        query = Linear(H * (D + P), False, std, dtype, name="query")(down).reshape(B, T, H, D + P)
        query = tap(self, "queries_unrotated", query)

        def turn(y: Float[Array, "B T N P"]) -> Float[Array, "B T N P"]:
            return rotate(y, row.positions, c.position, row.context) if isinstance(c.position, cfg.Rope) else y

        query = tap(self, "queries", jnp.concatenate([query[..., :D], turn(query[..., D:])], axis=-1))
        query = scaled(self, query, row, c.mask, c.score)

        latent = make_norm(c.norm, dtype, name="latent_norm")(Linear(R, c.bias, std, dtype, name="latent")(x))
        latent = tap(self, "latents", latent)
        rotary = turn(Linear(P, c.bias, std, dtype, name="rotary_key")(x)[:, :, None])
        new = {"latent": latent[:, None], "rotary_key": rotary.swapaxes(1, 2)}
        cache, seen, keys = extend(cache, new, queries, row, c.mask)

        def kernel(name: str, width: int) -> Float[Array, "R H N"]:
            initial = nn.initializers.normal(R**-0.5 if std is None else std)
            return Parameter("kernel", initial, (R, H * width), dtype, name=name)().astype(x.dtype).reshape(R, H, width)

        to_keys, to_values = kernel("key", D), kernel("value", E)
        query = query.swapaxes(1, 2)
        if cache is not None and T == 1:
            absorbed = jnp.concatenate([jnp.einsum("bhtd,rhd->bhtr", query[..., :D], to_keys), query[..., D:]], axis=-1)
            key = jnp.concatenate([seen["latent"], seen["rotary_key"]], axis=-1)
            heads = attended(self, c, absorbed, key, seen["latent"], queries, keys, row, train)
            heads = jnp.einsum("bhtr,rhe->bhte", heads, to_values)
        else:
            S = seen["latent"].shape[2]
            flat = flattened(seen["latent"][:, 0])
            key, value = ((flat @ w.reshape(R, -1)).reshape(B, S, H, -1).swapaxes(1, 2) for w in (to_keys, to_values))
            key = jnp.concatenate([key, jnp.broadcast_to(seen["rotary_key"], (B, H, S, P))], axis=-1)
            key, value = (
                tap(self, name, y.swapaxes(1, 2)).swapaxes(1, 2) for name, y in (("keys", key), ("values", value))
            )
            heads = attended(self, c, query, key, value, queries, keys, row, train)
        out = tap(self, "heads", heads, heads_first=True).swapaxes(1, 2)
        return Linear(C, c.bias, std, dtype, self.output_scale, heads=True, name="output")(out), cache, shared

    @staticmethod
    def cache_shapes(config: cfg.Latent, model: cfg.ModelConfig, length: int) -> CacheShapes:
        S, dtype = slots(config.mask, length), jnp.dtype(model.dtype)
        widths = {"latent": config.rank, "rotary_key": config.rotary_width}
        return {name: jax.ShapeDtypeStruct((1, S, width), dtype) for name, width in widths.items()}

    @staticmethod
    def mixing_flops(config: cfg.Latent, model: cfg.ModelConfig, context: int) -> int:
        """Scores and the mean of the values, for each key that is seen, in the plain form."""
        widths = config.head_width + config.rotary_width + config.resolved_value_width
        return round(2 * config.heads * widths * keys_per_query(config.mask, context))
