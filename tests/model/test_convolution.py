"""The short convolution: the identity at first, causal, blind to padding and other documents (by gradients), and the
same from a cache.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT, init_cache
from gpt_jax.config import Attention, BlockConfig, GatedMlp, ModelConfig, Rope, Window
from gpt_jax.config.errors import ConfigError
from gpt_jax.model.convolution import ShortConvolution
from gpt_jax.model.paths import map_with_path
from gpt_jax.model.row import Row
from tests.tiny import apply, random_params

T = 12
BLOCK = BlockConfig(Attention(heads=2, kv_heads=1, position=Rope()), GatedMlp(16))
WITH = dataclasses.replace(
    BLOCK, convolution=3, attention=dataclasses.replace(BLOCK.attention, mask=Window(5), convolution=4)
)
WITHOUT = dataclasses.replace(BLOCK, attention=dataclasses.replace(BLOCK.attention, mask=Window(5)))
TOKENS = jax.random.randint(jax.random.key(0), (2, T), 0, 11)


def model_of(block: BlockConfig, **changes: bool) -> GPT:
    return GPT(ModelConfig(11, T, 8, (block, block), **changes))


def shaken(model: GPT) -> dict:
    """Parameters in which no convolution is the identity any more."""
    rng = np.random.default_rng(2)
    return map_with_path(
        lambda path, x: jnp.asarray(rng.normal(size=x.shape), jnp.float32) if path.endswith("taps") else x,
        random_params(model),
    )


def test_the_sublayer_is_the_sum_of_its_taps_products() -> None:
    rng = np.random.default_rng(0)
    taps, x = rng.normal(size=(3, 8)).astype(np.float32), rng.normal(size=(1, T, 8)).astype(np.float32)
    row = Row(TOKENS[:1], jnp.arange(T), jnp.arange(T)[None])
    y, _ = jax.jit(ShortConvolution(3, "float32").apply)({"params": {"taps": taps}}, x, row, None)
    for t in range(T):
        expected = x[0, t] + sum(taps[j] * x[0, t - j] for j in range(3) if t >= j)
        np.testing.assert_allclose(y[0, t], expected, rtol=1e-5, atol=1e-6)


def test_it_starts_as_the_identity_and_moves_no_other_parameter() -> None:
    without, with_ = model_of(WITHOUT), model_of(WITH)
    a, b = without.init(jax.random.key(1), TOKENS), with_.init(jax.random.key(1), TOKENS)
    np.testing.assert_array_equal(apply(without, a, TOKENS), apply(with_, b, TOKENS))
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(b)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(a):
        np.testing.assert_array_equal(leaf, flat[jax.tree_util.keystr(path)])


def test_no_later_token_and_no_other_document_is_seen() -> None:
    model = model_of(WITH)
    params = shaken(model)
    segments = np.array([[0] * 5 + [1] * 7] * 2)

    def hidden(table: jax.Array) -> jax.Array:
        replaced = {"params": {**params["params"], "embedding": {"table": table}}}
        tokens = jnp.arange(11)[None]
        return model.apply(replaced, tokens, segments=jnp.asarray(segments[:1, :11]), method="backbone")[0].sum(-1)

    reach = np.abs(jax.jit(jax.jacobian(hidden))(params["params"]["embedding"]["table"])).sum(-1) > 0
    for t in range(11):
        for s in range(11):
            may = s <= t and segments[0, s] == segments[0, t]
            assert not reach[t, s] or may
    assert reach[4, 3] and reach[6, 5]


@pytest.mark.optimized  # logits of order 5, and a bound that leaves them few roundings
@pytest.mark.parametrize("pieces", [[1] * T, [5, 1, 6], [2, 3, 1, 6]])
def test_cached_is_the_full_forward(pieces: list[int]) -> None:
    model = model_of(WITH)
    params = shaken(model)
    full = apply(model, params, TOKENS)
    cache, out, start = init_cache(model.config, 2, T), [], 0
    for piece in pieces:
        logits, cache = apply(model, params, TOKENS[:, start : start + piece], cache=cache)
        out.append(logits)
        start += piece
    np.testing.assert_allclose(np.concatenate(out, axis=1), full, atol=1e-5)


def test_left_padding_counts_as_nothing() -> None:
    model = model_of(WITH)
    params = shaken(model)
    padded = jnp.concatenate([jnp.full((2, 3), 7), TOKENS[:, :6]], axis=1)
    logits, _ = apply(model, params, padded, cache=init_cache(model.config, 2, T, padding=jnp.array([3, 3])))
    np.testing.assert_allclose(np.asarray(logits)[:, 3:], apply(model, params, TOKENS[:, :6]), atol=1e-5)


def test_a_scan_gives_the_loops_logits() -> None:
    looped, scanned = model_of(WITH), model_of(WITH, scan=True)
    a, b = looped.init(jax.random.key(1), TOKENS), scanned.init(jax.random.key(1), TOKENS)
    np.testing.assert_allclose(apply(looped, a, TOKENS), apply(scanned, b, TOKENS), atol=1e-6)


def test_fewer_than_two_taps_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 taps"):
        dataclasses.replace(BLOCK, convolution=1)
