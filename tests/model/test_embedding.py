"""Token and position embeddings against rows of their tables; ids and positions out of range raise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.config import AbsolutePositionConfig, Embedding, Learned, RmsNorm, Sinusoidal
from gpt_jax.config.errors import ConfigError
from gpt_jax.model.embedding import TokenEmbedding
from gpt_jax.model.position import sinusoidal_position
from tests.tiny import apply, random_params, tiny

TOKENS = jnp.array([[3, 3, 0, 31], [5, 1, 3, 2]])
POSITIONS = jnp.array([[0, 1, 0, 1], [3, 2, 1, 0]])


def embed(embedding: Embedding, train: bool = False, **model: object) -> tuple[dict, jax.Array]:
    module = TokenEmbedding(tiny(embedding=embedding, **model))
    params = jax.jit(module.init, static_argnums=3)(jax.random.key(0), TOKENS, POSITIONS, False)
    rngs = {"dropout": jax.random.key(1)} if train else None
    out = jax.jit(module.apply, static_argnums=3)(params, TOKENS, POSITIONS, train, rngs=rngs)
    return jax.tree.map(np.asarray, (params["params"], out))


def test_an_id_is_a_row_of_the_table() -> None:
    params, out = embed(Embedding())
    assert set(params) == {"table"} and params["table"].shape == (32, 8)
    np.testing.assert_array_equal(out, params["table"][TOKENS])


def test_position_0_of_a_learned_code_with_an_offset_is_that_row() -> None:
    params, out = embed(Embedding(Learned(offset=3)))
    assert params["position"]["table"].shape == (19, 8)
    np.testing.assert_array_equal(out, params["table"][TOKENS] + params["position"]["table"][POSITIONS + 3])


def test_learned_and_sinusoidal_codes_are_added() -> None:
    params, out = embed(Embedding(Learned()))
    assert params["position"]["table"].shape == (16, 8)  # as many rows as the context is long
    np.testing.assert_array_equal(out, params["table"][TOKENS] + params["position"]["table"][POSITIONS])
    params, out = embed(Embedding(Sinusoidal(theta=100.0)))
    assert set(params) == {"table"}
    np.testing.assert_array_equal(
        out, params["table"][TOKENS] + np.asarray(sinusoidal_position(POSITIONS, 8, Sinusoidal(100.0)))
    )


def test_the_norm_follows_the_sum() -> None:
    _, out = embed(Embedding(Learned(), RmsNorm(scale=False)))
    params, plain = embed(Embedding(Learned()))
    np.testing.assert_allclose(out, plain / np.sqrt(np.square(plain).mean(-1, keepdims=True) + 1e-6), rtol=1e-5)


def test_dropout_zeroes_and_rescales_in_training_only() -> None:
    params, plain = embed(Embedding(dropout=0.5))
    np.testing.assert_array_equal(plain, params["table"][TOKENS])
    _, out = embed(Embedding(dropout=0.5), train=True)
    kept = np.asarray(out != 0)
    assert 0.2 < kept.mean() < 0.8
    np.testing.assert_allclose(out[kept], 2 * plain[kept], rtol=1e-6)


def test_compute_in_bfloat16_from_parameters_in_float32() -> None:
    params, out = embed(Embedding(Learned()), dtype="bfloat16")
    assert out.dtype == jnp.bfloat16 and params["table"].dtype == jnp.float32


@pytest.mark.parametrize("token", [32, -1])
def test_an_id_outside_the_vocabulary_raises_in_an_eager_call(token: int) -> None:
    """JAX itself would gather NaN or the last row."""
    model = GPT(tiny())
    params = random_params(model)
    with pytest.raises(ValueError, match=rf"token id {token} is out of range: it must lie in \[0, 32\)"):
        model.apply(params, TOKENS.at[0, 1].set(token))


def test_a_row_or_a_position_beyond_a_learned_table_raises() -> None:
    model = GPT(tiny(embedding=Embedding(Learned())))
    params = random_params(model)
    apply(model, params, jnp.zeros((1, 16), jnp.int32))
    for call in (model.apply, jax.jit(model.apply)):  # a length is known when compiling
        with pytest.raises(ValueError, match="17 tokens do not fit the learned table of 16 positions"):
            call(params, jnp.zeros((1, 17), jnp.int32))
    with pytest.raises(ValueError, match=r"position 16 is out of range: it must lie in \[0, 16\)"):
        model.apply(params, TOKENS, positions=POSITIONS.at[0, 0].set(16))
    shifted = GPT(tiny(embedding=Embedding(Learned(offset=2))))  # its last two rows are no further positions
    params = random_params(shifted)
    assert params["params"]["embedding"]["position"]["table"].shape == (18, 8)
    with pytest.raises(ValueError, match="17 tokens do not fit the learned table of 16 positions"):
        shifted.apply(params, jnp.zeros((1, 17), jnp.int32))
    longer = GPT(tiny(embedding=Embedding(Learned(length=20))))
    assert apply(longer, random_params(longer), jnp.zeros((1, 20), jnp.int32)).shape == (1, 20, 32)


def test_a_position_that_the_embedding_does_not_know_is_refused() -> None:
    class Unknown(AbsolutePositionConfig):
        pass

    AbsolutePositionConfig.choices.pop("Unknown")
    with pytest.raises(ConfigError, match="TokenEmbedding has no position code Unknown"):
        embed(Embedding(Unknown()))
