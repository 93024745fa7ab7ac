"""Norms against the papers' equations, in float32 whatever the input's type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.config import LayerNorm, NormConfig, RmsNorm
from gpt_jax.config.errors import ConfigError
from gpt_jax.model.norm import make_norm
from tests import reference

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(3.0, 5.0, (2, 5, 16)), jnp.float32)
CHOICES = [LayerNorm(), LayerNorm(1e-2, scale=False), LayerNorm(bias=False), RmsNorm(), RmsNorm(1e-2, scale=False)]


@pytest.mark.parametrize("choice", CHOICES, ids=repr)
def test_equals_the_papers_equation(choice: NormConfig) -> None:
    module = make_norm(choice, "float32")
    params = jax.tree.map(lambda leaf: leaf + jnp.linspace(-0.5, 1.0, leaf.size), module.init(KEY, X))
    leaves = reference.as_float64(params["params"]) if params else {}
    wanted = np.apply_along_axis(lambda x: reference.norm(choice, leaves, x), -1, np.asarray(X, np.float64))
    np.testing.assert_allclose(module.apply(params, X), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "choice, names",
    [(LayerNorm(), ["bias", "scale"]), (LayerNorm(bias=False), ["scale"]), (RmsNorm(), ["scale"])],
    ids=repr,
)
def test_has_the_parameters_it_was_asked_for_and_starts_as_the_plain_norm(choice: NormConfig, names: list[str]) -> None:
    params = make_norm(choice, "bfloat16").init(KEY, X)["params"]
    assert sorted(params) == names
    assert all(leaf.shape == (16,) and leaf.dtype == jnp.bfloat16 for leaf in params.values())
    plain = type(choice)(scale=False, **({"bias": False} if isinstance(choice, LayerNorm) else {}))
    out = make_norm(choice, "float32").apply({"params": params}, X)
    np.testing.assert_array_equal(out, make_norm(plain, "float32").apply({}, X))


def test_layer_norm_has_mean_0_and_deviation_1_before_its_affine_part() -> None:
    y = make_norm(LayerNorm(scale=False, bias=False), "float32").apply({}, X)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-5)


def test_rms_norm_has_root_mean_square_1() -> None:
    y = make_norm(RmsNorm(scale=False), "float32").apply({}, X)
    np.testing.assert_allclose(jnp.sqrt(jnp.square(y).mean(-1)), 1, atol=1e-6)


@pytest.mark.parametrize("choice", [LayerNorm(), RmsNorm()], ids=repr)
def test_each_position_by_itself(choice: NormConfig) -> None:
    module = make_norm(choice, "float32")
    params = module.init(KEY, X)
    order = jnp.array([3, 0, 4, 1, 2])
    np.testing.assert_array_equal(module.apply(params, X)[:, order], module.apply(params, X[:, order]))


@pytest.mark.parametrize("choice", [LayerNorm(), RmsNorm()], ids=repr)
def test_statistics_are_float32_whatever_comes_in(choice: NormConfig) -> None:
    """In bfloat16 a mean of 4096 numbers near 100 would lose every digit of their differences."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(100 + rng.normal(size=(1, 4096)), jnp.bfloat16)
    module = make_norm(choice, "float32")
    y = module.apply(module.init(KEY, x), x)
    assert y.dtype == jnp.bfloat16
    leaves = {"scale": np.ones(4096), "bias": np.zeros(4096)}
    wanted = reference.norm(choice, leaves, np.asarray(x[0], np.float64))
    np.testing.assert_allclose(y[0].astype(jnp.float32), wanted, atol=2**-8 * np.abs(wanted).max())


def test_a_zero_vector_stays_finite_with_its_gradient() -> None:
    for choice in (LayerNorm(), RmsNorm()):
        module = make_norm(choice, "float32")
        params = module.init(KEY, X)
        gradient = jax.grad(lambda x, m=module, p=params: m.apply(p, x).sum())(jnp.zeros((1, 16)))
        assert np.isfinite(gradient).all()


def test_none_is_the_identity_without_parameters() -> None:
    module = make_norm(None, "float32")
    assert module.init(KEY, X) == {}
    assert module.apply({}, X) is X


def test_a_norm_that_nothing_implements_is_refused() -> None:
    class Unknown(NormConfig):
        pass

    NormConfig.choices.pop("Unknown")
    with pytest.raises(ConfigError, match="Unknown has no implementation beside those of LayerNorm, RmsNorm"):
        make_norm(Unknown(), "float32")
