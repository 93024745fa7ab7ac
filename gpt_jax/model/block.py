"""One layer: a mixer and an MLP, each added to the residual stream."""

from __future__ import annotations

from flax import linen as nn
from jaxtyping import Array, Float

from gpt_jax import config as cfg
from gpt_jax.config.variant import implementation
from gpt_jax.model.convolution import convolved
from gpt_jax.model.mixer import Carry
from gpt_jax.model.mlp import Mlp
from gpt_jax.model.norm import make_norm
from gpt_jax.model.placement import by_rows
from gpt_jax.model.registry import mixer_of
from gpt_jax.model.row import Row
from gpt_jax.model.slots import LayerCache
from gpt_jax.model.taps import tap

MLPS: dict[type[cfg.MlpConfig], type[nn.Module]] = {cfg.Mlp: Mlp, cfg.GatedMlp: Mlp}


class Block(nn.Module):
    """x (B, T, C) → x (B, T, C), in the residual arrangement that `BlockConfig.residual` names.

    Returns x, the layer's extended cache (None without one) and `shared`, what later layers read of this one.
    """

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
            return tap(self, f"{name}/output", make_norm(c.norm, model.param_dtype, name=name)(x))

        def add(name: str, x: Array, change: Array) -> Array:
            if c.residual_scale is not None:
                change *= c.residual_scale
            change = nn.Dropout(c.dropout, name=f"{name}_dropout")(change, deterministic=not train)
            return tap(self, f"{name}_residual", by_rows(x + tap(self, f"{name}_change", change)))

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
            return tap(self, "output", add("mlp", add("attention", x, change), mlp(to_mlp))), cache, shared

        norm_input, norm_output, norm_sum = ARRANGEMENTS[c.residual]
        y, cache = convolve("attention", norm("attention_norm", x) if norm_input else x, cache)
        change, cache, shared = attention(y, row, cache, shared, train)
        x = add("attention", x, norm("attention_output_norm", change) if norm_output else change)
        x = norm("attention_norm", x) if norm_sum else x
        if mlp is not None:
            y, cache = convolve("mlp", norm("mlp_norm", x) if norm_input else x, cache)
            change = mlp(y)
            x = add("mlp", x, norm("mlp_output_norm", change) if norm_output else change)
            x = norm("mlp_norm", x) if norm_sum else x
        return tap(self, "output", x), cache, shared


# residual arrangement → (norm on the sublayer's input, norm on its output, norm after the sum)
ARRANGEMENTS = {
    "pre": (True, False, False),
    "sandwich": (True, True, False),
    "output": (False, True, False),
    "post": (False, False, True),
}


def residual_scale(model: cfg.ModelConfig) -> float:
    """The factor on the initial values of the kernels that write to the residual stream (see `Init.output`)."""
    return {"depth": (2 * model.layers) ** -0.5, "same": 1.0, "zero": 0.0}[model.init.output]
