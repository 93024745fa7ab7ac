"""One layer: attention and MLP around the residual stream."""

from __future__ import annotations

from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax import config as cfg
from gpt_jax.config.variant import implementation
from gpt_jax.model.convolution import convolved
from gpt_jax.model.mixer import Carry
from gpt_jax.model.mlp import Mlp
from gpt_jax.model.norm import make_norm
from gpt_jax.model.registry import mixer_of
from gpt_jax.model.row import Row
from gpt_jax.model.slots import LayerCache
from gpt_jax.model.taps import tap

MLPS: dict[type[cfg.MlpConfig], type[nn.Module]] = {cfg.Mlp: Mlp, cfg.GatedMlp: Mlp}


class Block(nn.Module):
    """x (B, T, C) → x (B, T, C), in one of the residual arrangements that `BlockConfig` names."""

    config: cfg.BlockConfig
    model: cfg.ModelConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T C"], row: Row, cache: LayerCache | None, shared: Carry, train: bool
    ) -> tuple[Float[Array, "B T C"], LayerCache | None, Carry]:
        c, model = self.config, self.model
        output_scale = residual_scale(model)
        attention = mixer_of(c.attention)(c.attention, model, output_scale, name="attention")
        mlp = None if c.mlp is None else implementation(MLPS, c.mlp)(c.mlp, model, output_scale, name="mlp")

        def norm(name: str, x: Array) -> Array:
            return make_norm(c.norm, model.param_dtype, name=name)(x)

        def add(name: str, x: Array, change: Array) -> Array:
            if c.residual_scale is not None:
                change *= c.residual_scale
            change = nn.Dropout(c.dropout, name=f"{name}_dropout")(change, deterministic=not train)
            return x + tap(self, f"{name}_change", change)

        def convolve(name: str, x: Array, cache: LayerCache | None) -> tuple[Array, LayerCache | None]:
            return convolved(name, x, c.convolution, model.param_dtype, row, cache)

        if c.residual.startswith("parallel"):
            assert mlp is not None
            if c.residual == "parallel":
                to_attention = to_mlp = norm("norm", x)
            else:
                to_attention, to_mlp = norm("attention_norm", x), norm("mlp_norm", x)
            to_attention, cache = convolve("attention", to_attention, cache)
            to_mlp, cache = convolve("mlp", to_mlp, cache)
            change, cache, shared = attention(to_attention, row, cache, shared, train)
            return add("mlp", add("attention", x, change), mlp(to_mlp)), cache, shared

        before, inner, after = ARRANGEMENTS[c.residual]
        y, cache = convolve("attention", norm("attention_norm", x) if before else x, cache)
        change, cache, shared = attention(y, row, cache, shared, train)
        x = add("attention", x, norm("attention_output_norm", change) if inner else change)
        x = norm("attention_norm", x) if after else x
        if mlp is not None:
            y, cache = convolve("mlp", norm("mlp_norm", x) if before else x, cache)
            change = mlp(y)
            x = add("mlp", x, norm("mlp_output_norm", change) if inner else change)
            x = norm("mlp_norm", x) if after else x
        return x, cache, shared


# residual arrangement → is there a norm before the sublayer, on what it adds, after the sum?
ARRANGEMENTS = {
    "pre": (True, False, False),
    "sandwich": (True, True, False),
    "output": (False, True, False),
    "post": (False, False, True),
}


def residual_scale(model: cfg.ModelConfig) -> float:
    """What the initial kernels that write to the residual stream are multiplied by (see `Init.output`)."""
    return {"depth": (2 * model.layers) ** -0.5, "same": 1.0, "zero": 0.0}[model.init.output]
