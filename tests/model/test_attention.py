"""Softmax attention by its properties: sums, masks, scales, shared key heads, sinks, dropout, and spans."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.config import PROJECTIONS, Alibi, Attention, Causal, MaskConfig, PositionConfig, Score, Window
from gpt_jax.config.errors import ConfigError
from gpt_jax.model.attend import Logits, einsum_attention, normalize
from gpt_jax.model.blocked import scores as dot_products
from gpt_jax.model.mask import Side, allowed
from tests.tiny import random_params, tiny

B, H, K, T, D = 2, 4, 2, 6, 8
RNG = np.random.default_rng(0)
QUERY, KEY, VALUE = (jnp.asarray(RNG.normal(size=(B, n, T, D)), jnp.float32) for n in (H, K, K))
SIDE = Side(jnp.arange(T), jnp.arange(T)[None])
MASK = allowed(Causal(), SIDE, SIDE)


def probabilities(
    query: jax.Array = QUERY, key: jax.Array = KEY, softcap: float | None = None, padding: jax.Array | None = None
) -> jax.Array:
    logits = Logits(None, padding, None, Causal(), None, softcap, 0.0)
    return normalize(logits(dot_products(query, key), SIDE, SIDE), "softmax", None)


def mixed(
    query: jax.Array = QUERY, key: jax.Array = KEY, value: jax.Array = VALUE, padding: jax.Array | None = None
) -> jax.Array:
    logits = Logits(None, padding, None, Causal(), None, None, 0.0)
    return einsum_attention(query, key, value, SIDE, SIDE, logits, "softmax", None)


def test_rows_sum_to_1_and_what_may_not_be_seen_is_exactly_0() -> None:
    p = probabilities()
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(p)[..., ~np.asarray(MASK[0])], 0.0)
    assert (np.asarray(p)[..., np.asarray(MASK[0])] > 0).all()


def test_scores_are_scaled_by_the_root_of_the_head_width() -> None:
    """Of independent q and k the dot product has variance D; the scale brings it to 1."""

    def run(score: Score, size: float) -> np.ndarray:
        model = GPT(tiny(Attention(4, 2, 8, score=score), layers=1))
        params = random_params(model)
        query = params["params"]["blocks"]["0"]["attention"]["query"]
        query["kernel"] = query["kernel"] * size
        return np.asarray(model.apply(params, jnp.arange(8)[None]))

    np.testing.assert_allclose(run(Score(), 1.0), run(Score(scale=8**-0.5), 1.0), atol=1e-6)
    np.testing.assert_allclose(run(Score(), 1.0), run(Score(scale=1.0), 8**-0.5), atol=1e-5)
    assert np.abs(run(Score(), 1.0) - run(Score(scale=1.0), 1.0)).max() > 0.1


def test_a_softcap_bounds_the_scores() -> None:
    """With |score| ≤ c no probability of a row exceeds another's e^(2c)-fold."""
    p = np.asarray(probabilities(100 * QUERY, softcap=1.0))[..., -1, :]
    assert (p.max(-1) / p.min(-1) <= np.exp(2.0) * 1.001).all()
    np.testing.assert_allclose(probabilities(softcap=1e4), probabilities(), atol=1e-5)


def test_neighbouring_query_heads_share_a_key_head() -> None:
    p = probabilities()
    for h in range(H):
        alone = probabilities(QUERY[:, [h]], KEY[:, [h // 2]])
        np.testing.assert_allclose(p[:, [h]], alone, atol=1e-6)
        out = mixed(QUERY[:, [h]], KEY[:, [h // 2]], VALUE[:, [h // 2]])
        np.testing.assert_allclose(mixed()[:, [h]], out, atol=1e-6)
        np.testing.assert_allclose(out, jnp.einsum("bhts,bhse->bhte", alone, VALUE[:, [h // 2]]), atol=1e-6)


def test_the_softmax_is_float32_and_stays_finite() -> None:
    query, key = QUERY.astype(jnp.bfloat16), KEY.astype(jnp.bfloat16)
    p = probabilities(query, key)
    assert p.dtype == jnp.float32
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)  # in bfloat16 it would be off by 1e-3
    np.testing.assert_allclose(p, probabilities(query.astype(jnp.float32), key.astype(jnp.float32)), atol=1e-6)
    for size in (1e4, -1e4):
        huge = np.asarray(probabilities(size * jnp.sign(QUERY), jnp.sign(KEY)))
        assert np.isfinite(huge).all()
        np.testing.assert_array_equal(huge[..., ~np.asarray(MASK[0])], 0.0)  # however low what may be seen scores


def test_a_row_that_may_see_nothing_stays_finite_and_so_does_its_gradient() -> None:
    padding = jnp.array([3, 0])  # the first three queries of row 0 are padding, and see nothing

    def out(query: jax.Array) -> jax.Array:
        return mixed(query, padding=padding)

    def loss(query: jax.Array) -> jax.Array:
        return out(query)[:, :, 3:].sum()

    assert np.isfinite(out(QUERY)).all()
    assert np.isfinite(jax.grad(loss)(QUERY)).all()
    np.testing.assert_array_equal(jax.grad(loss)(QUERY)[0, :, :3], 0.0)


@pytest.mark.parametrize("logit", [0.0, 1.5, -80.0, 80.0])
def test_a_sink_takes_its_share_of_the_probability(logit: float) -> None:
    """As if one more key with that logit were there, whose value is 0."""
    scores = 3 * dot_products(QUERY, KEY)
    p = np.asarray(normalize(scores, "softmax", jnp.full(H, logit)))
    widened = np.concatenate([np.asarray(scores, np.float64), np.full((B, H, T, 1), logit)], axis=-1)
    weights = np.exp(widened - widened.max(-1, keepdims=True))
    np.testing.assert_allclose(p, (weights / weights.sum(-1, keepdims=True))[..., :-1], atol=1e-6)
    gradient = jax.grad(lambda s: normalize(scores, "softmax", s)[..., 0].sum())(jnp.full(H, logit))
    assert np.isfinite(gradient).all()


def test_sigmoid_weighs_each_key_by_itself() -> None:
    logits = Logits(None, None, None, Causal(), None, None, -2.0)(dot_products(QUERY, KEY), SIDE, SIDE)
    p = np.asarray(normalize(logits, "sigmoid", None))
    scores = np.asarray(dot_products(QUERY, KEY), np.float64)
    np.testing.assert_allclose(p, np.tril(1 / (1 + np.exp(2.0 - scores))), atol=1e-6)
    np.testing.assert_array_equal(p[..., ~np.asarray(MASK[0])], 0.0)


def test_dropout_acts_on_probabilities_in_training_only_and_takes_its_key_as_an_argument() -> None:
    model = GPT(tiny(Attention(4, dropout=0.5), layers=1))
    params = random_params(model)
    tokens = jnp.arange(8).reshape(1, 8)

    def heads(seed: int | None) -> np.ndarray:
        options = {} if seed is None else {"train": True, "rngs": {"dropout": jax.random.key(seed)}}
        return np.asarray(model.apply(params, tokens, capture="**/heads", **options)[1]["blocks/0/attention/heads"])

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
            logits, taps = model.apply(params, tokens, segments=segments, capture="**/probabilities")
            return logits.std(), (logits, taps)

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    once = run()
    monkeypatch.setattr("gpt_jax.model.mask.SHORTEST_SPAN", 3)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), run(), once)


@pytest.mark.parametrize("attention", [Attention(4), Attention(4, 2, 6), Attention(2, 1, 4, bias=PROJECTIONS)])
def test_projections_have_the_shapes_of_the_letters(attention: Attention) -> None:
    shapes = jax.eval_shape(GPT(tiny(attention)).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    found = jax.tree.map(lambda leaf: leaf.shape, shapes["params"]["blocks"]["1"]["attention"])
    C, H, K, D = 8, attention.heads, attention.resolved_kv_heads, attention.resolved_head_width(8)
    wanted = {"query": (C, H * D), "key": (C, K * D), "value": (C, K * D), "output": (H * D, C)}
    assert found == {
        name: {"kernel": shape} | ({"bias": shape[1:]} if attention.bias else {}) for name, shape in wanted.items()
    }


def test_a_position_that_attention_does_not_know_is_refused() -> None:
    class Unknown(PositionConfig):
        pass

    PositionConfig.choices.pop("Unknown")
    with pytest.raises(ConfigError, match="Unknown has no implementation"):
        GPT(tiny(Attention(4, position=Unknown()))).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
