"""The gated delta rule against the paper's recurrence in float64: in chunks, token by token and in pieces."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.config import Delta
from gpt_jax.config.errors import ConfigError
from gpt_jax.model.delta import EPSILON, gated_delta, unit, unit_inverse

B, H, T, D, E = 2, 3, 23, 4, 5
rng = np.random.default_rng(0)
QUERY, KEY = (y / np.linalg.norm(y, axis=-1, keepdims=True) for y in rng.normal(size=(2, B, H, T, D)))
VALUE = rng.normal(size=(B, H, T, E))
LOG_DECAY, BETA = -rng.gamma(0.3, size=(B, H, T)), rng.uniform(0, 2, (B, H, T))
SEGMENTS = np.array([[0] * 5 + [1] * 1 + [2] * 13 + [0] * 4, [3] * 16 + [1] * 7])
STATE = rng.normal(size=(B, H, D, E))
ARRAYS = tuple(jnp.asarray(x, jnp.float32) for x in (QUERY, KEY, VALUE, LOG_DECAY, BETA))
compiled = jax.jit(gated_delta, static_argnames="chunk")


def recurrence(
    query: Any, key: Any, value: Any, log_decay: Any, beta: Any, segments: Any = None, state: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Yang, Kautz and Hatamizadeh 2024, transposed; in float64, each document from a state of zeros."""
    query, key, value, beta = (np.asarray(x, np.float64) for x in (query, key, value, beta))
    eye = np.eye(key.shape[-1])
    S = np.zeros((*key.shape[:2], key.shape[-1], value.shape[-1])) if state is None else state.copy()
    out = np.zeros(value.shape)
    for t in range(key.shape[2]):
        if segments is not None and t > 0:
            S[segments[:, t] != segments[:, t - 1]] = 0
        k, v, b = key[:, :, t], value[:, :, t], beta[:, :, t, None, None]
        alpha = 1 if log_decay is None else np.exp(log_decay[:, :, t, None, None])
        S = alpha * (eye - b * k[..., :, None] * k[..., None, :]) @ S + b * k[..., :, None] * v[..., None, :]
        out[:, :, t] = np.einsum("bhde,bhd->bhe", S, query[:, :, t])
    return out, S


@pytest.mark.optimized
@pytest.mark.parametrize("rows", [64, 96, 128])
def test_compiled_with_a_norm_behind_it_it_is_still_the_recurrence(rows: int) -> None:
    """With a reduction behind it, XLA's YNNPACK fusions read the state of zeros past a constant's end (jax 0.10.2)."""
    query, key, value = np.random.default_rng(0).normal(size=(3, rows, 2, 32, 32)).astype(np.float32)
    beta = jnp.full(query.shape[:3], 0.5)

    @jax.jit
    def normed(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return unit(gated_delta(query, unit(key), value, None, beta)[0])

    def unit_by_hand(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.square(x.astype(np.float64)).sum(-1, keepdims=True) + EPSILON)

    expected = unit_by_hand(recurrence(query, unit_by_hand(key), value, None, beta)[0])
    np.testing.assert_allclose(normed(query, key, value), expected, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
@pytest.mark.parametrize("has_decay", [False, True])
@pytest.mark.parametrize("has_segments", [False, True])
def test_in_chunks_of_any_size_it_is_the_recurrence(chunk: int, has_decay: bool, has_segments: bool) -> None:
    """Documents end anywhere, a segment number comes back, and the given state counts in the first document alone."""
    query, key, value, log_decay, beta = ARRAYS
    segments, given = jnp.asarray(SEGMENTS) if has_segments else None, jnp.asarray(STATE, jnp.float32)
    out, state = compiled(query, key, value, log_decay if has_decay else None, beta, segments, given, chunk=chunk)
    expected, last = recurrence(
        QUERY, KEY, VALUE, LOG_DECAY if has_decay else None, BETA, SEGMENTS if has_segments else None, STATE
    )
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(state, last, atol=1e-5)


@pytest.mark.parametrize("has_decay", [False, True])
def test_pieces_and_single_tokens_that_pass_the_state_on_are_one_call(has_decay: bool) -> None:
    @jax.jit
    def in_pieces(arrays: Any) -> tuple[jax.Array, jax.Array]:
        state, out, at = None, [], 0
        for size in (5, 1, 1, 9, 1, 6):
            query, key, value, log_decay, beta = (x[:, :, at : at + size] for x in arrays)
            y, state = gated_delta(query, key, value, log_decay if has_decay else None, beta, None, state, 4)
            out.append(y)
            at += size
        return jnp.concatenate(out, axis=2), state

    out, state = in_pieces(ARRAYS)
    expected, last = recurrence(QUERY, KEY, VALUE, LOG_DECAY if has_decay else None, BETA)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(state, last, atol=1e-5)


def test_gradients_are_those_of_the_recurrence() -> None:
    """Token by token, in the form that decodes; of all inputs and the given state."""
    weights, given = jnp.asarray(rng.normal(size=(B, H, T, E)), jnp.float32), jnp.asarray(STATE, jnp.float32)

    def in_chunks(arrays: Any, state: Any, chunk: int) -> Any:
        out, state = gated_delta(*arrays, None, state, chunk)
        return (out * weights).sum() + jnp.cos(state).sum()

    def one_by_one(arrays: Any, state: Any) -> Any:
        def token(state: jax.Array, x: Any) -> tuple[jax.Array, jax.Array]:
            y, state = gated_delta(*(leaf[:, :, None] for leaf in x), None, state)
            return state, y[:, :, 0]

        state, out = jax.lax.scan(token, state, tuple(jnp.moveaxis(x, 2, 0) for x in arrays))
        return (jnp.moveaxis(out, 0, 2) * weights).sum() + jnp.cos(state).sum()

    expected = jax.jit(jax.grad(one_by_one, (0, 1)))(ARRAYS, given)
    assert all(float(np.abs(leaf).max()) > 0.1 for leaf in jax.tree.leaves(expected))
    for chunk in (5, 64):
        gradients = jax.jit(jax.grad(partial(in_chunks, chunk=chunk), (0, 1)))(ARRAYS, given)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), gradients, expected)


@pytest.mark.parametrize("chunk", [3, 64])
def test_no_gradient_comes_from_a_later_token_or_another_document(chunk: int) -> None:
    query, *others = ARRAYS

    def outputs(key: jax.Array, value: jax.Array, log_decay: jax.Array, beta: jax.Array) -> jax.Array:
        out, _ = gated_delta(query, key, value, log_decay, beta, jnp.asarray(SEGMENTS), None, chunk)
        return out.sum((1, 3))

    runs = np.cumsum(np.diff(SEGMENTS, axis=1, prepend=SEGMENTS[:, :1]) != 0, axis=1)
    same = np.tril(runs[:, :, None] == runs[:, None, :])
    is_first = np.diff(runs, axis=1, prepend=-1) != 0  # the state is zero there, so its decay changes nothing
    jacobians = jax.jit(jax.jacobian(outputs, (0, 1, 2, 3)))(*others)
    for expected, of in zip((same, same, same & ~is_first[:, None], same), jacobians, strict=True):
        paths = np.abs(np.asarray(of).reshape(B, T, B, H, T, -1)).sum((3, 5))
        for b in range(B):
            np.testing.assert_array_equal(paths[b, :, b] > 0, expected[b])
            assert not paths[b, :, 1 - b].any()


def test_one_key_again_and_again_stays_exact() -> None:
    """The triangular system at its worst: β = 1 replaces the stored value at each token, β = 2 mirrors it.

    Integers leave nothing to round, so the chunks must give exactly what the recurrence gives, token by token.
    """
    T, betas = 200, np.array([1.0, 2.0])
    key = np.zeros((2, 1, T, 4), np.float32)
    key[..., 0] = 1
    value = np.random.default_rng(0).integers(-8, 9, (2, 1, T, 3)).astype(np.float32)
    beta = np.broadcast_to(betas[:, None, None], (2, 1, T)).astype(np.float32)
    out, _ = compiled(*map(jnp.asarray, (key, key, value)), None, jnp.asarray(beta))
    expected, stored = np.zeros((2, T, 3)), np.zeros((2, 3))
    for t in range(T):
        stored = stored + betas[:, None] * (value[:, 0, t] - stored)
        expected[:, t] = stored
    np.testing.assert_array_equal(out[:, 0], expected)


def test_long_rows_that_forget_fast_stay_finite() -> None:
    T = 300
    x = jnp.ones((1, 1, T, 4)) / 2

    def total(log_decay: jax.Array) -> jax.Array:
        return gated_delta(x, x, x, log_decay, jnp.ones((1, 1, T)))[0].sum()

    log_decays = -jnp.array([0.0, 1.0, 50.0, 1e5])[:, None, None, None] * jnp.ones((1, 1, T))
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(total)))(log_decays)
    np.testing.assert_allclose(values, 4 * [600], rtol=1e-5)
    assert np.isfinite(gradients).all()


@pytest.mark.parametrize("n", [1, 2, 5, 16, 33])
def test_the_inverse_of_unit_triangular_matrices(n: int) -> None:
    x = np.tril(rng.normal(size=(3, 2, n, n)) * 0.5, -1)
    direction = np.tril(rng.normal(size=x.shape), -1)
    derivative = jax.jit(lambda x, direction: jax.jvp(unit_inverse, (x,), (direction,)))
    inverse, tangent = derivative(x.astype(np.float32), direction.astype(np.float32))
    np.testing.assert_allclose(inverse, np.linalg.inv(np.eye(n) + x), rtol=1e-4, atol=1e-4)
    wanted = (np.linalg.inv(np.eye(n) + x + 1e-5 * direction) - np.linalg.inv(np.eye(n) + x - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(tangent, wanted, rtol=1e-3, atol=1e-3 * max(1, np.abs(wanted).max()))


def test_unit_vectors_have_length_one_and_that_of_zeros_has_a_finite_gradient() -> None:
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    vectors, pullback = jax.jit(lambda x: (unit(x), jax.grad(lambda x: unit(x).sum())(x)))(x)
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert np.isfinite(pullback).all()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"key_heads": 3}, "must divide attention.heads"),
        ({"key_heads": 0}, "must divide attention.heads"),
        ({"convolution": 1}, "at least 2 taps"),
        ({"head_width": -1}, "head_width must be positive"),
    ],
)
def test_invalid_settings_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Delta(4, **fields)
    with pytest.raises(ConfigError, match="no multiple of attention.heads"):
        Delta(3).check(8)
