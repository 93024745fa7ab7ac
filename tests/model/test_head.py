"""The head's logits against products by hand: tied or not, bias, scale and softcap, in float32."""

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.config import Head, Init
from gpt_jax.model.head import LmHead
from tests.tiny import tiny

RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.normal(size=(2, 5, 8)), jnp.float32)
TABLE = jnp.asarray(RNG.normal(size=(32, 8)), jnp.float32)


def made(head: Head, **model: object) -> tuple[LmHead, dict]:
    module = LmHead(tiny(head=head, **model))
    return module, module.init(jax.random.key(0), HIDDEN, TABLE)


def test_tied_scores_are_dot_products_with_the_table() -> None:
    module, params = made(Head())
    assert params == {}
    logits = module.apply(params, HIDDEN, TABLE)
    assert logits.shape == (2, 5, 32)
    np.testing.assert_allclose(logits, HIDDEN @ TABLE.T, atol=1e-5)


def test_untied_has_a_kernel_of_its_own() -> None:
    module, params = made(Head(tied=False))
    assert jax.tree.map(jnp.shape, params["params"]) == {"kernel": (8, 32)}
    np.testing.assert_allclose(module.apply(params, HIDDEN, TABLE), HIDDEN @ params["params"]["kernel"], atol=1e-6)


def test_a_head_std_of_0_starts_with_uniform_predictions() -> None:
    module, params = made(Head(tied=False), init=Init(head_std=0.0))
    np.testing.assert_array_equal(module.apply(params, HIDDEN, TABLE), 0.0)


def test_a_bias_is_added_before_the_softcap() -> None:
    module, params = made(Head(bias=True, softcap=3.0))
    params = {"params": {"bias": jnp.linspace(-5, 5, 32)}}
    wanted = 3 * np.tanh((HIDDEN @ TABLE.T + params["params"]["bias"]) / 3)
    np.testing.assert_allclose(module.apply(params, HIDDEN, TABLE), wanted, atol=1e-5)
    assert np.abs(wanted).max() <= 3


def test_logits_are_float32_and_summed_in_float32() -> None:
    module, params = made(Head(), dtype="bfloat16")
    hidden = HIDDEN.astype(jnp.bfloat16)
    logits = module.apply(params, hidden, TABLE)
    assert logits.dtype == jnp.float32
    exact = np.asarray(hidden, np.float64) @ np.asarray(TABLE.astype(jnp.bfloat16), np.float64).T
    np.testing.assert_allclose(logits, exact, atol=1e-5)  # rounded to bfloat16 they would be off by 0.03
