"""MLPs and their activations against the papers' formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.config import GatedMlp, Mlp
from gpt_jax.model.mlp import ACTIVATIONS
from gpt_jax.model.mlp import Mlp as MlpModule
from tests import reference
from tests.tiny import tiny

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)), jnp.float32)
CHOICES = [Mlp(12, "gelu", True), Mlp(12, "relu2"), Mlp(12, "silu"), GatedMlp(12, "silu", True), GatedMlp(12, "gelu")]


def made(choice: Any) -> tuple[MlpModule, Any]:
    module = MlpModule(choice, tiny(mlp=choice), 1.0)
    params = module.init(jax.random.key(0), X)
    keys = iter(jax.random.split(jax.random.key(1), 9))
    return module, jax.tree.map(lambda leaf: 0.5 * jax.random.normal(next(keys), leaf.shape), params)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_their_formulas(name: str) -> None:
    xs = np.linspace(-6, 6, 49)
    wanted = [reference.activate(name, x) for x in xs]
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(xs, jnp.float32)), wanted, atol=2e-6)


def test_the_two_gelus_differ_by_little_but_differ() -> None:
    x = jnp.linspace(-4, 4, 99)
    assert 1e-4 < np.abs(ACTIVATIONS["gelu"](x) - ACTIVATIONS["gelu_tanh"](x)).max() < 1e-3


@pytest.mark.parametrize("choice", CHOICES, ids=repr)
def test_equals_the_papers_equation(choice: Any) -> None:
    module, params = made(choice)
    leaves = reference.as_float64(params["params"])
    wanted = np.apply_along_axis(lambda x: reference.mlp(choice, leaves, x), -1, np.asarray(X, np.float64))
    np.testing.assert_allclose(module.apply(params, X), wanted, atol=1e-5)


@pytest.mark.parametrize("choice", CHOICES, ids=repr)
def test_has_the_parameters_it_was_asked_for(choice: Any) -> None:
    _, params = made(choice)
    shapes = jax.tree.map(jnp.shape, params["params"])
    gate = {"gate"} if isinstance(choice, GatedMlp) else set()
    assert set(shapes) == {"up", "down"} | gate
    for name, shape in {"up": (8, 12), "gate": (8, 12), "down": (12, 8)}.items():
        if name in shapes:
            assert shapes[name] == {"kernel": shape} | ({"bias": shape[1:]} if choice.bias else {})
