"""The projection: what it computes does not depend on how it is laid out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.config import PROJECTIONS, Attention, BlockConfig, ElementwiseGate, GatedMlp, Lora, ModelConfig, Rope
from gpt_jax.model import linear
from gpt_jax.model.linear import Linear
from tests.tiny import VOCABULARY, random_params, tiny

ATTENTION = Attention(heads=4, kv_heads=2, position=Rope(), bias=PROJECTIONS, gate=ElementwiseGate())
BLOCKS = {
    "plain": BlockConfig(ATTENTION, GatedMlp(16)),
    "adapters": BlockConfig(ATTENTION, GatedMlp(16), adapter=Lora(rank=2)),
}


def test_heads_are_split_and_joined() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 8)), jnp.float32)
    flat = Linear(12, True, None, "float32")
    params = flat.init(jax.random.key(0), x)
    split = Linear((4, 3), True, None, "float32").apply(params, x)
    np.testing.assert_array_equal(split, flat.apply(params, x).reshape(2, 3, 4, 3))
    joined = Linear(12, True, None, "float32", heads=True).apply(params, x.reshape(2, 3, 2, 4))
    np.testing.assert_array_equal(joined, flat.apply(params, x))


@pytest.mark.parametrize("name", BLOCKS)
def test_the_layout_for_tpus_gives_the_same_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: ModelConfig = tiny(width=16, blocks=(BLOCKS[name],) * 2)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (2, 8)), jnp.int32)
    params = random_params(GPT(model))

    def gradients() -> Any:
        loss = lambda p: jnp.mean(jnp.square(GPT(model).apply(p, tokens)))  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    expected = gradients()
    asked = []
    monkeypatch.setattr(linear, "on_tpu", lambda: asked.append(1) or True)
    found = gradients()
    assert asked
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
