from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.config import Alibi, Attention, Causal, MaskConfig, PositionConfig, Score, Window
from gpt_jax.conversion import ConfigError
from gpt_jax.model.attention import attention_probabilities, mix
from gpt_jax.model.mask import allowed
from tests.tiny import random_params, tiny

B, H, K, T, D = 2, 4, 2, 6, 8
RNG = np.random.default_rng(0)
QUERY, KEY, VALUE = (jnp.asarray(RNG.normal(size=(B, n, T, D)), jnp.float32) for n in (H, K, K))
MASK = allowed(Window(T), jnp.arange(T), jnp.arange(T))


def probabilities(query: jax.Array = QUERY, key: jax.Array = KEY, score: Score | None = None) -> jax.Array:
    return attention_probabilities(query, key, MASK, None, Score() if score is None else score)


def test_rows_sum_to_1_and_what_may_not_be_seen_is_exactly_0() -> None:
    p = probabilities()
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(p)[..., ~np.asarray(MASK[0])], 0.0)
    assert (np.asarray(p)[..., np.asarray(MASK[0])] > 0).all()


def test_scores_are_scaled_by_the_root_of_the_head_width() -> None:
    """Of independent q and k the dot product has variance D; the scale brings it to 1."""
    np.testing.assert_allclose(probabilities(), probabilities(score=Score(scale=8**-0.5)), atol=1e-7)
    np.testing.assert_allclose(probabilities(), probabilities(QUERY / 8**0.5, score=Score(scale=1.0)), atol=1e-6)


def test_a_softcap_bounds_the_scores() -> None:
    """With |score| ≤ c no probability of a row exceeds another's e^(2c)-fold."""
    p = np.asarray(probabilities(100 * QUERY, score=Score(softcap=1.0)))[..., -1, :]
    assert (p.max(-1) / p.min(-1) <= np.exp(2.0) * 1.001).all()
    np.testing.assert_allclose(probabilities(score=Score(softcap=1e4)), probabilities(), atol=1e-5)


def test_neighbouring_query_heads_share_a_key_head() -> None:
    p = probabilities()
    for h in range(H):
        alone = attention_probabilities(QUERY[:, [h]], KEY[:, [h // 2]], MASK, None, Score())
        np.testing.assert_allclose(p[:, [h]], alone, atol=1e-6)
        np.testing.assert_allclose(mix(p, VALUE)[:, [h]], mix(alone, VALUE[:, [h // 2]]), atol=1e-6)


def test_the_softmax_is_float32_and_stays_finite() -> None:
    p = probabilities(QUERY.astype(jnp.bfloat16), KEY.astype(jnp.bfloat16))
    assert p.dtype == jnp.float32
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)  # in bfloat16 it would be off by 1e-3
    query, key = QUERY.astype(jnp.bfloat16), KEY.astype(jnp.bfloat16)
    exact = probabilities(query.astype(jnp.float32), key.astype(jnp.float32), Score(scale=0.5))
    np.testing.assert_allclose(probabilities(query, key, Score(scale=0.5)), exact, atol=1e-6)
    for size in (1e4, -1e4):
        huge = np.asarray(probabilities(size * jnp.sign(QUERY), jnp.sign(KEY)))
        assert np.isfinite(huge).all()
        np.testing.assert_array_equal(huge[..., ~np.asarray(MASK[0])], 0.0)  # however low what may be seen scores


def test_a_row_that_may_see_nothing_stays_finite_and_so_does_its_gradient() -> None:
    nothing = MASK.at[:, 2].set(False)

    def out(query: jax.Array) -> jax.Array:
        return mix(attention_probabilities(query, KEY, nothing, None, Score()), VALUE)

    def loss(query: jax.Array) -> jax.Array:
        return out(query)[:, :, 3:].sum()

    assert np.isfinite(out(QUERY)).all()
    assert np.isfinite(jax.grad(loss)(QUERY)).all()
    np.testing.assert_array_equal(jax.grad(loss)(QUERY)[:, :, 2], 0.0)


def test_dropout_acts_on_probabilities_in_training_only_and_takes_its_key_as_an_argument() -> None:
    model = GPT(tiny(Attention(4, dropout=0.5), layers=1))
    params = random_params(model)
    tokens = jnp.arange(8).reshape(1, 8)

    def heads(seed: int | None) -> np.ndarray:
        options = {} if seed is None else {"train": True, "rngs": {"dropout": jax.random.key(seed)}}
        return np.asarray(model.apply(params, tokens, capture="*/heads", **options)[1]["blocks/0/attention/heads"])

    np.testing.assert_array_equal(heads(0), heads(0))
    assert not np.array_equal(heads(0), heads(1))
    # The first token sees itself alone: its value comes twice as large, or not at all.
    ratios = {round(float(r), 4) for seed in range(4) for r in (heads(seed) / heads(None))[0, :, 0].ravel()}
    assert ratios == {0.0, 2.0}
    with pytest.raises(Exception, match="dropout"):
        model.apply(params, tokens, train=True)


@pytest.mark.parametrize("mask", [Causal(), Window(3)], ids=repr)
def test_attention_in_spans_is_attention_at_once(mask: MaskConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, tapped probabilities and gradients."""
    model = GPT(tiny(Attention(4, 2, mask=mask, position=Alibi()), layers=1))
    params = random_params(model)
    tokens, segments = jnp.arange(20).reshape(2, 10), jnp.array([[0] * 4 + [1] * 6, [0] * 10])

    def run() -> Any:
        def loss(params: Any) -> Any:
            logits, taps = model.apply(params, tokens, segments=segments, capture="*/probabilities")
            return logits.std(), (logits, taps)

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    once = run()
    monkeypatch.setattr("gpt_jax.model.mask.SHORTEST_SPAN", 3)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), run(), once)


@pytest.mark.parametrize(
    "attention", [Attention(4), Attention(4, 2, 6), Attention(2, 1, 4, bias=True, output_bias=True)]
)
def test_projections_have_the_shapes_of_the_letters(attention: Attention) -> None:
    shapes = jax.eval_shape(GPT(tiny(attention)).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    found = jax.tree.map(lambda leaf: leaf.shape, shapes["params"]["blocks"]["1"]["attention"])
    C, H, K, D = 8, attention.heads, attention.resolved_kv_heads, attention.resolved_head_width(8)
    wanted = {"query": (C, H * D), "key": (C, K * D), "value": (C, K * D), "output": (H * D, C)}
    biased = {"query": attention.bias, "key": attention.bias, "value": attention.bias, "output": attention.output_bias}
    assert found == {
        name: {"kernel": shape} | ({"bias": shape[1:]} if biased[name] else {}) for name, shape in wanted.items()
    }


def test_a_position_that_attention_does_not_know_is_refused() -> None:
    class Unknown(PositionConfig):
        pass

    PositionConfig.choices.pop("Unknown")
    with pytest.raises(ConfigError, match="attention knows no position Unknown"):
        GPT(tiny(Attention(4, position=Unknown()))).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
