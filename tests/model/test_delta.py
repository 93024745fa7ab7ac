"""The gated delta rule by itself: in chunks, one token at a time and in pieces it is the recurrence of the paper."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.config import Delta
from gpt_jax.config.errors import ConfigError
from gpt_jax.model.delta import gated_delta, unit, unit_inverse

B, H, T, D, E = 2, 3, 23, 4, 5
rng = np.random.default_rng(0)
QUERY, KEY = (y / np.linalg.norm(y, axis=-1, keepdims=True) for y in rng.normal(size=(2, B, H, T, D)))
VALUE = rng.normal(size=(B, H, T, E))
LOG_DECAY, BETA = -rng.gamma(0.3, size=(B, H, T)), rng.uniform(0, 2, (B, H, T))
SEGMENTS = np.array([[0] * 5 + [1] * 1 + [2] * 13 + [0] * 4, [3] * 16 + [1] * 7])
STATE = rng.normal(size=(B, H, D, E))
ARRAYS = tuple(jnp.asarray(x, jnp.float32) for x in (QUERY, KEY, VALUE, LOG_DECAY, BETA))


def recurrence(log_decay: Any, segments: Any, state: Any) -> tuple[np.ndarray, np.ndarray]:
    """Yang, Kautz and Hatamizadeh 2024, transposed; in float64, a document starting with nothing."""
    out, S = np.zeros((B, H, T, E)), np.zeros((B, H, D, E)) if state is None else state.copy()
    for b, h in np.ndindex(B, H):
        for t in range(T):
            if segments is not None and t > 0 and segments[b, t] != segments[b, t - 1]:
                S[b, h] = 0
            k, beta = KEY[b, h, t], BETA[b, h, t]
            alpha = 1 if log_decay is None else np.exp(log_decay[b, h, t])
            S[b, h] = alpha * (np.eye(D) - beta * np.outer(k, k)) @ S[b, h] + beta * np.outer(k, VALUE[b, h, t])
            out[b, h, t] = S[b, h].T @ QUERY[b, h, t]
    return out, S


@pytest.mark.parametrize("rows", [64, 96, 128])
def test_a_norm_after_it_leaves_the_compiled_program_right(rows: int) -> None:
    """With a reduction behind it, XLA's YNNPACK fusions took the state of zeros from beyond a constant (jax 0.10.2)."""
    query, key, value = jax.random.normal(jax.random.key(0), (3, rows, 2, 32, 32))
    beta = jnp.full(query.shape[:3], 0.5)

    def normed(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return unit(gated_delta(query, unit(key), value, None, beta)[0])

    np.testing.assert_allclose(jax.jit(normed)(query, key, value), normed(query, key, value), atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
@pytest.mark.parametrize("has_decay", [False, True])
@pytest.mark.parametrize("has_segments", [False, True])
def test_any_chunk_is_the_recurrence(chunk: int, has_decay: bool, has_segments: bool) -> None:
    """Documents may end anywhere, one number may come back, and what was there before counts in the first alone."""
    query, key, value, log_decay, beta = ARRAYS
    segments, given = jnp.asarray(SEGMENTS) if has_segments else None, jnp.asarray(STATE, jnp.float32)
    out, state = gated_delta(query, key, value, log_decay if has_decay else None, beta, segments, given, chunk)
    expected, last = recurrence(LOG_DECAY if has_decay else None, SEGMENTS if has_segments else None, STATE)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(state, last, atol=1e-5)


@pytest.mark.parametrize("has_decay", [False, True])
def test_pieces_and_single_tokens_are_one_call(has_decay: bool) -> None:
    state, out, at = None, [], 0
    for size in (5, 1, 1, 9, 1, 6):
        query, key, value, log_decay, beta = (x[:, :, at : at + size] for x in ARRAYS)
        y, state = gated_delta(query, key, value, log_decay if has_decay else None, beta, None, state, 4)
        out.append(y)
        at += size
    expected, last = recurrence(LOG_DECAY if has_decay else None, None, None)
    np.testing.assert_allclose(jnp.concatenate(out, axis=2), expected, atol=1e-5)
    np.testing.assert_allclose(state, last, atol=1e-5)


@pytest.mark.parametrize("chunk", [5, 64])
def test_gradients_are_those_of_the_recurrence(chunk: int) -> None:
    """Token by token, by the form that decodes; of all inputs and the state that was there."""
    weights, given = jnp.asarray(rng.normal(size=(B, H, T, E)), jnp.float32), jnp.asarray(STATE, jnp.float32)

    def in_chunks(arrays: Any, state: Any) -> Any:
        out, state = gated_delta(*arrays, None, state, chunk)
        return (out * weights).sum() + jnp.cos(state).sum()

    def one_by_one(arrays: Any, state: Any) -> Any:
        out = []
        for t in range(T):
            y, state = gated_delta(*(x[:, :, t : t + 1] for x in arrays), None, state)
            out.append(y)
        return (jnp.concatenate(out, axis=2) * weights).sum() + jnp.cos(state).sum()

    a, b = (jax.jit(jax.grad(f, (0, 1)))(ARRAYS, given) for f in (in_chunks, one_by_one))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), a, b)
    assert all(float(jnp.abs(leaf).max()) > 0.1 for leaf in jax.tree.leaves(a))


@pytest.mark.parametrize("chunk", [3, 64])
def test_no_gradient_comes_from_a_later_token_or_another_document(chunk: int) -> None:
    query, *others = ARRAYS

    def outputs(key: jax.Array, value: jax.Array, log_decay: jax.Array, beta: jax.Array) -> jax.Array:
        out, _ = gated_delta(query, key, value, log_decay, beta, jnp.asarray(SEGMENTS), None, chunk)
        return out.sum((1, 3))

    runs = np.cumsum(np.diff(SEGMENTS, axis=1, prepend=SEGMENTS[:, :1]) != 0, axis=1)
    same = np.tril(runs[:, :, None] == runs[:, None, :])
    is_first = np.diff(runs, axis=1, prepend=-1) != 0  # nothing is there yet that its decay could reduce
    jacobians = jax.jit(jax.jacobian(outputs, (0, 1, 2, 3)))(*others)
    for expected, of in zip((same, same, same & ~is_first[:, None], same), jacobians, strict=True):
        paths = np.abs(of.reshape(B, T, B, H, T, -1)).sum((3, 5))
        for b in range(B):
            np.testing.assert_array_equal(paths[b, :, b] > 0, expected[b])
            assert not paths[b, :, 1 - b].any()


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_one_key_again_and_again_stays_exact(beta: float) -> None:
    """The triangular system at its worst: with β = 1 the value is replaced, with β = 2 it is mirrored, forever."""
    T = 200
    key = jnp.zeros((1, 1, T, 4)).at[..., 0].set(1.0)
    value = jnp.asarray(rng.normal(size=(1, 1, T, 3)), jnp.float32)
    out, _ = gated_delta(key, key, value, None, jnp.full((1, 1, T), beta))
    expected, stored = [], np.zeros(3)
    for v in np.asarray(value[0, 0], np.float64):
        stored = stored + beta * (v - stored)
        expected.append(stored)
    np.testing.assert_allclose(out[0, 0], expected, atol=1e-4 if beta > 1 else 1e-5)  # the sums grow like √T


def test_long_rows_that_forget_fast_stay_finite() -> None:
    x = jnp.ones((1, 1, 300, 4)) / 2

    def total(log_decay: jax.Array) -> jax.Array:
        return gated_delta(x, x, x, log_decay, jnp.ones((1, 1, 300)))[0].sum()

    for size in (0.0, 1.0, 50.0, 1e5):
        value, gradient = jax.value_and_grad(total)(jnp.full((1, 1, 300), -size))
        np.testing.assert_allclose(value, 600, rtol=1e-5)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("n", [1, 2, 5, 16, 33])
def test_the_inverse_of_unit_triangular_matrices(n: int) -> None:
    x = np.tril(rng.normal(size=(3, 2, n, n)) * 0.5, -1)
    inverse = unit_inverse(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(inverse, np.linalg.inv(np.eye(n) + x), rtol=1e-4, atol=1e-4)
    direction = np.tril(rng.normal(size=x.shape), -1)
    _, tangent = jax.jvp(unit_inverse, (jnp.asarray(x, jnp.float32),), (jnp.asarray(direction, jnp.float32),))
    wanted = (np.linalg.inv(np.eye(n) + x + 1e-5 * direction) - np.linalg.inv(np.eye(n) + x - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(tangent, wanted, rtol=1e-3, atol=1e-3 * max(1, np.abs(wanted).max()))


def test_unit_vectors() -> None:
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(unit(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: unit(x).sum())(x)).all()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"key_heads": 3}, "must divide attention.heads"),
        ({"key_heads": 0}, "must divide attention.heads"),
        ({"convolution": 1}, "at least 2 taps"),
        ({"head_width": -1}, "head_width must be positive"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Delta(4, **fields)
    with pytest.raises(ConfigError, match="no multiple of attention.heads"):
        Delta(3).check(8)
