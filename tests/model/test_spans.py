"""Attention of a long row in several spans of queries gives the logits, gradients and probabilities of one span."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.config import Alibi, Attention, BlockConfig, Causal, MaskConfig, Mlp, ModelConfig, Rope, Window
from gpt_jax.model import mask as mask_module
from gpt_jax.model.mask import Side, allowed, spans
from tests.tiny import apply, random_params

T = 150


@pytest.mark.parametrize("mask", [Causal(), Window(7), Window(100)])
@pytest.mark.parametrize("length", [1, 64, 65, T, 1000])
def test_spans_cover_every_query_once_and_every_key_it_may_see(mask: MaskConfig, length: int) -> None:
    parts = spans(mask, length)
    seen = np.zeros((length, length), bool)
    for queries, keys in parts:
        seen[queries, keys] = True
    side = Side(jnp.arange(length), jnp.arange(length)[None])
    assert np.all(seen[np.asarray(allowed(mask, side, side))[0]])
    assert [i for queries, _ in parts for i in range(length)[queries]] == list(range(length))
    assert len(parts) <= 4


def test_spans_of_a_long_row_leave_out_at_least_a_third_of_the_work() -> None:
    work = sum((q.stop - q.start) * (k.stop - k.start) for q, k in spans(Causal(), 256))
    assert work <= 0.65 * 256**2


@pytest.mark.parametrize("mask", [Causal(), Window(70)])
@pytest.mark.parametrize("position", [Rope(), Alibi()])
def test_spans_change_no_logit_gradient_or_probability(
    mask: MaskConfig, position: Rope | Alibi, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = Attention(heads=4, kv_heads=2, mask=mask, position=position)
    model = GPT(ModelConfig(17, T, 16, (BlockConfig(attention, Mlp(16)),)))
    tokens = jax.random.randint(jax.random.key(0), (2, T), 0, 17)
    segments = jnp.arange(T)[None] // jnp.array([[40], [110]])
    params = model.init(jax.random.key(1), tokens)

    def run() -> Any:
        def loss(params: dict) -> tuple[jax.Array, dict]:
            logits, captured = model.apply(params, tokens, segments=segments, capture="**/probabilities")
            return jnp.sum(jnp.sin(logits)), captured

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (loss, captured), gradient = run()
    monkeypatch.setattr(mask_module, "SHORTEST_SPAN", 10 * T)
    (loss_at_once, captured_at_once), gradient_at_once = run()
    assert len(spans(mask, T)) == 1
    np.testing.assert_allclose(loss, loss_at_once, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), captured, captured_at_once)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradient, gradient_at_once)


def test_dropout_draws_differ_with_the_key_in_every_span() -> None:
    attention = Attention(heads=1, dropout=0.5)
    model = GPT(ModelConfig(17, T, 16, (BlockConfig(attention, None),)))
    params, tokens = random_params(model), jnp.zeros((1, T), int)
    first, second = (apply(model, params, tokens, train=True, rngs={"dropout": jax.random.key(k)}) for k in (0, 1))
    assert not np.allclose(np.asarray(first)[:, 100:], np.asarray(second)[:, 100:])
