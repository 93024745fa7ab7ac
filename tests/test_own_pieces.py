"""A dataclass, a function or module and one row of a table add a mask, a value path, a norm or an MLP.

Each piece below computes what one of the package's own computes, so the logits must be equal; with another setting they
must differ.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax import GPT, init_cache
from gpt_jax.config import (
    Attention,
    BlockConfig,
    FromKey,
    MaskConfig,
    Mlp,
    MlpConfig,
    ModelConfig,
    NormConfig,
    RmsNorm,
    ValueConfig,
)
from gpt_jax.config.conversion import from_config_dict, from_dict, to_config_dict, to_dict
from gpt_jax.model.block import MLPS
from gpt_jax.model.linear import Linear
from gpt_jax.model.mask import VISIBLE
from gpt_jax.model.norm import NORMS
from gpt_jax.model.values import VALUES
from tests.tiny import random_params, tiny

TOKENS = jnp.arange(16).reshape(2, 8)


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Name → the piece, which a user defines in a cell."""

    @dataclass(frozen=True)
    class Strided(MaskConfig):
        """Every `step`-th earlier position."""

        step: int = 1

    @dataclass(frozen=True)
    class Negated(ValueConfig):
        """The key, times `sign`, is the value."""

        sign: float = 1.0

        made = ("key",)

    @dataclass(frozen=True)
    class MeanSquare(NormConfig):
        """Root mean square `size`, without a scale."""

        size: float = 1.0

    @dataclass(frozen=True)
    class Shifted(MlpConfig):
        """An MLP with ReLU whose hidden units are shifted."""

        width: int = 16
        shift: float = 0.0

    def negated(layer: Any, *arguments: Any) -> Any:
        (key, value, keys), cache, shared = VALUES[FromKey](layer, *arguments)
        return (key, layer.config.value.sign * value, keys), cache, shared

    class MeanSquareNorm(nn.Module):
        config: Any
        param_dtype: str
        scaled_axes: int = 1

        def __call__(self, x: Any) -> Any:
            return self.config.size * x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)

    class ShiftedMlp(nn.Module):
        config: Any
        model: Any
        output_scale: float

        @nn.compact
        def __call__(self, x: Any) -> Any:
            std, dtype = self.model.init.kernel_std, self.model.param_dtype
            hidden = jax.nn.relu(Linear(self.config.width, True, std, dtype, name="up")(x) + self.config.shift)
            return Linear(x.shape[-1], True, std, dtype, self.output_scale, name="down")(hidden)

    monkeypatch.setitem(VISIBLE, Strided, lambda mask, distance, *_: (distance >= 0) & (distance % mask.step == 0))
    monkeypatch.setitem(VALUES, Negated, negated)
    monkeypatch.setitem(NORMS, MeanSquare, MeanSquareNorm)
    monkeypatch.setitem(MLPS, Shifted, ShiftedMlp)
    yield {kind.__name__: kind for kind in (Strided, Negated, MeanSquare, Shifted)}
    for kind in (Strided, Negated, MeanSquare, Shifted):
        kind.choices.pop(kind.__name__)


def logits(block: BlockConfig, params: Any) -> np.ndarray:
    return np.asarray(jax.jit(GPT(tiny(blocks=(block,))).apply)(params, TOKENS))


@pytest.mark.parametrize("name", ["Strided", "Negated", "MeanSquare", "Shifted"])
def test_one_row_adds_a_piece_that_configurations_training_and_decoding_know(name: str, pieces: dict[str, Any]) -> None:
    piece = pieces[name]
    plain = BlockConfig(Attention(4, 2), Mlp(16, activation="relu", bias=True), norm=RmsNorm(scale=False))

    def changed(block: BlockConfig, choice: Any) -> BlockConfig:
        attention = {"Strided": "mask", "Negated": "value"}
        if name in attention:
            return dataclasses.replace(
                block, attention=dataclasses.replace(block.attention, **{attention[name]: choice})
            )
        return dataclasses.replace(block, **{{"MeanSquare": "norm", "Shifted": "mlp"}[name]: choice})

    known = changed(plain, FromKey()) if name == "Negated" else plain
    alike = changed(plain, piece())
    setting, value = {"Strided": ("step", 2), "Negated": ("sign", -1.0)}.get(name, ("size", 2.0))
    if name == "Shifted":
        setting, value = "shift", 0.5
    model = tiny(blocks=(alike,))
    assert from_dict(ModelConfig, to_dict(model)) == model
    assert from_config_dict(ModelConfig, to_config_dict(model)) == model

    params = random_params(GPT(tiny(blocks=(known,))))
    np.testing.assert_array_equal(logits(alike, params), logits(known, params))
    other = changed(plain, piece(**{setting: value}))
    assert np.abs(logits(other, params) - logits(known, params)).max() > 1e-3

    apply = jax.jit(GPT(tiny(blocks=(other,))).apply)
    prefill, cache = apply(params, TOKENS[:, :5], cache=init_cache(tiny(blocks=(other,)), 2, 8))
    rest, _ = apply(params, TOKENS[:, 5:], cache=cache)
    cached = np.concatenate([prefill, rest], axis=1)
    np.testing.assert_allclose(cached, logits(other, params), atol=1e-5 * max(1.0, np.abs(cached).max()))
