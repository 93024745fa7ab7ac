"""Linear attention against the papers' recurrence in float64: in chunks, token by token and in pieces."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.config import Alibi, LinearAttention, Rope
from gpt_jax.config.errors import ConfigError
from gpt_jax.model.linear_attention import feature_map, linear_attention
from gpt_jax.model.mixer import zeros
from gpt_jax.model.recurrence import decays, fixed_log_decay

B, H, T, D, E = 2, 3, 23, 4, 5
rng = np.random.default_rng(0)
QUERY, KEY = (np.abs(rng.normal(size=(B, H, T, D))) for _ in range(2))
VALUE = rng.normal(size=(B, H, T, E))
LOG_DECAY = -rng.gamma(0.5, size=(B, H, T))
SEGMENTS = np.array([[0] * 5 + [1] * 1 + [2] * 13 + [0] * 4, [3] * 16 + [1] * 7])
STATE = {"state": rng.normal(size=(B, H, D, E)), "normalizer": np.abs(rng.normal(size=(B, H, D)))}
ARRAYS = tuple(jnp.asarray(x, jnp.float32) for x in (QUERY, KEY, VALUE, LOG_DECAY))
compiled = jax.jit(linear_attention, static_argnames=("normalized", "chunk"))


def recurrence(log_decay: Any, normalized: bool, segments: Any, state: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Katharopoulos et al. 2020, eq. 16 to 20, with decay; in float64, each document from a state of zeros."""
    out, S, z = np.zeros((B, H, T, E)), np.zeros((B, H, D, E)), np.zeros((B, H, D))
    for b, h in np.ndindex(B, H):
        if state is not None:
            S[b, h], z[b, h] = state["state"][b, h], state["normalizer"][b, h]
        for t in range(T):
            if segments is not None and t > 0 and segments[b, t] != segments[b, t - 1]:
                S[b, h], z[b, h] = 0, 0
            left = 1 if log_decay is None else np.exp(log_decay[b, h, t])
            S[b, h] = left * S[b, h] + np.outer(KEY[b, h, t], VALUE[b, h, t])
            z[b, h] = left * z[b, h] + KEY[b, h, t]
            out[b, h, t] = QUERY[b, h, t] @ S[b, h] / (QUERY[b, h, t] @ z[b, h] + 1e-6 if normalized else 1)
    return out, {"state": S} | ({"normalizer": z} if normalized else {})


def start(given: bool, normalized: bool) -> dict[str, jax.Array] | None:
    names = ("state", "normalizer") if normalized else ("state",)
    return {name: jnp.asarray(STATE[name], jnp.float32) for name in names} if given else None


@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
@pytest.mark.parametrize(("has_decay", "normalized"), [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("has_segments", [False, True])
def test_in_chunks_of_any_size_it_is_the_recurrence(
    chunk: int, has_decay: bool, normalized: bool, has_segments: bool
) -> None:
    """Documents end anywhere, a segment number comes back, and the given state counts in the first document alone."""
    query, key, value, log_decay = ARRAYS
    log_decay = log_decay if has_decay else None
    segments = jnp.asarray(SEGMENTS) if has_segments else None
    given = start(True, normalized)
    out, state = compiled(
        query, key, value, log_decay, normalized=normalized, segments=segments, state=given, chunk=chunk
    )
    expected = recurrence(LOG_DECAY if has_decay else None, normalized, SEGMENTS if has_segments else None, STATE)
    np.testing.assert_allclose(out, expected[0], atol=1e-5)
    assert state.keys() == expected[1].keys()
    for name in state:
        np.testing.assert_allclose(state[name], expected[1][name], atol=1e-5)


@pytest.mark.parametrize("normalized", [False, True])
def test_pieces_and_single_tokens_that_pass_the_state_on_are_one_call(normalized: bool) -> None:
    @jax.jit
    def in_pieces(arrays: Any) -> Any:
        state, out, at = None, [], 0
        for size in (5, 1, 1, 9, 1, 6):
            piece = (x[:, :, at : at + size] for x in arrays)
            y, state = linear_attention(*piece, normalized, None, state, 4)
            out.append(y)
            at += size
        return jnp.concatenate(out, axis=2), state

    out, state = in_pieces(ARRAYS)
    expected, last = recurrence(LOG_DECAY, normalized, None, None)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert state.keys() == last.keys()
    for name in state:
        np.testing.assert_allclose(state[name], last[name], atol=1e-5)


def test_gradients_are_those_of_the_recurrence() -> None:
    """Token by token, in the form that decodes; of all inputs and the given state."""
    weights = jnp.asarray(rng.normal(size=(B, H, T, E)), jnp.float32)

    def in_chunks(arrays: Any, state: Any, chunk: int) -> Any:
        out, state = linear_attention(*arrays, True, None, state, chunk)
        return (out * weights).sum() + jnp.cos(state["state"]).sum()

    def one_by_one(arrays: Any, state: Any) -> Any:
        def token(state: Any, x: Any) -> tuple[Any, jax.Array]:
            y, state = linear_attention(*(leaf[:, :, None] for leaf in x), True, None, state)
            return state, y[:, :, 0]

        state, out = jax.lax.scan(token, state, tuple(jnp.moveaxis(x, 2, 0) for x in arrays))
        return (jnp.moveaxis(out, 0, 2) * weights).sum() + jnp.cos(state["state"]).sum()

    given = start(True, True)
    expected = jax.jit(jax.grad(one_by_one, (0, 1)))(ARRAYS, given)
    assert all(float(np.abs(leaf).max()) > 0.1 for leaf in jax.tree.leaves(expected))
    for chunk in (5, 64):
        gradients = jax.jit(jax.grad(partial(in_chunks, chunk=chunk), (0, 1)))(ARRAYS, given)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), gradients, expected)


@pytest.mark.parametrize("chunk", [3, 64])
def test_no_gradient_comes_from_a_later_token_or_another_document(chunk: int) -> None:
    query, *others = ARRAYS

    def outputs(key: jax.Array, value: jax.Array, log_decay: jax.Array) -> jax.Array:
        out, _ = linear_attention(query, key, value, log_decay, False, jnp.asarray(SEGMENTS), None, chunk)
        return out.sum((1, 3))

    runs = np.cumsum(np.diff(SEGMENTS, axis=1, prepend=SEGMENTS[:, :1]) != 0, axis=1)
    same = np.tril(runs[:, :, None] == runs[:, None, :])
    is_first = np.diff(runs, axis=1, prepend=-1) != 0  # the state is zero there, so its decay changes nothing
    jacobians = jax.jit(jax.jacobian(outputs, (0, 1, 2)))(*others)
    for expected, of in zip((same, same, same & ~is_first[:, None]), jacobians, strict=True):
        paths = np.abs(np.asarray(of).reshape(B, T, B, H, T, -1)).sum((3, 5))
        for b in range(B):
            np.testing.assert_array_equal(paths[b, :, b] > 0, expected[b])
            assert not paths[b, :, 1 - b].any()


def test_a_token_that_forgets_nearly_all_costs_no_digits() -> None:
    """Sums of logarithms from the chunk's beginning would be −10,000.3 and −10,000.1, whose difference is rounded."""
    log_decay = LOG_DECAY.copy()
    log_decay[:, :, 3] = -1e4
    query, key, value, _ = ARRAYS
    out, _ = compiled(query, key, value, jnp.asarray(log_decay, jnp.float32), normalized=False)
    np.testing.assert_allclose(out, recurrence(log_decay, False, None, None)[0], atol=1e-5)


def test_long_rows_that_forget_fast_stay_finite() -> None:
    x = jnp.ones((1, 1, 500, 2))

    def total(log_decay: jax.Array) -> jax.Array:
        return linear_attention(x, x, x, log_decay, True)[0].sum()

    log_decays = -jnp.array([0.0, 1.0, 50.0, 1e5])[:, None, None, None] * jnp.ones((1, 1, 500))
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(total)))(log_decays)
    np.testing.assert_allclose(values, 4 * [1000], rtol=1e-5)
    assert np.isfinite(gradients).all()


def test_decays_by_hand() -> None:
    logs = jnp.log(jnp.array([[[0.5, 0.2, 0.1, 0.4]]]))
    within, before = map(np.asarray, jax.jit(decays, static_argnums=(2, 3))(logs, jnp.array([[7, 7, 8, 8]]), 4, 2))
    np.testing.assert_allclose(within[:, 0, 0], [[[1, 0], [0.2, 1]], [[1, 0], [0.4, 1]]], rtol=1e-6)
    np.testing.assert_allclose(before[:, 0, 0], [[0.5, 0.1], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(np.exp(fixed_log_decay(2)), [31 / 32, 63 / 64], rtol=1e-6)


@pytest.mark.optimized
@pytest.mark.parametrize("rows", [64, 96, 128])
@pytest.mark.parametrize("cached", [False, True])
def test_compiled_with_a_norm_behind_it_it_is_still_the_recurrence(rows: int, cached: bool) -> None:
    """With a reduction behind it, XLA's YNNPACK fusions read the state of zeros past a constant's end (jax 0.10.2)."""
    query, key, value = np.random.default_rng(0).normal(size=(3, rows, 2, 32, 32)).astype(np.float32)

    def normed(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        state = {"state": zeros((rows, 2, 32, 32), jnp.float32)} if cached else None
        out, _ = linear_attention(query, key, value, state=state)
        return out * jax.lax.rsqrt(jnp.square(out).mean(-1, keepdims=True))

    out = np.einsum("bhts,bhse->bhte", np.tril(np.einsum("bhtd,bhsd->bhts", query, key)), value)
    expected = out / np.sqrt(np.square(out).mean(-1, keepdims=True))
    np.testing.assert_allclose(jax.jit(normed)(query, key, value), expected, atol=1e-4)


def test_a_query_of_zeros_gets_zeros() -> None:
    zeros, value = jnp.zeros((1, 1, 3, 2)), jnp.ones((1, 1, 3, 2))
    np.testing.assert_array_equal(linear_attention(zeros, zeros, value, None, True)[0], 0)


def test_feature_maps() -> None:
    x = jnp.array([-30.0, -1.0, 0.0, 2.0])
    np.testing.assert_allclose(feature_map("elu", x), [np.exp(-30.0), np.exp(-1.0), 1, 3], rtol=1e-6)
    np.testing.assert_allclose(feature_map("relu", x), [0, 0, 0, 2])
    np.testing.assert_allclose(feature_map("silu", x), x / (1 + np.exp(-x)), rtol=1e-6)
    np.testing.assert_array_equal(feature_map(None, x), x)
    assert np.isfinite(jax.vmap(jax.grad(partial(feature_map, "elu")))(jnp.array([-1e4, 0.0, 1e4]))).all()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"feature_map": "silu"}, "normalize divides by a sum"),
        ({"feature_map": None}, "normalize divides by a sum"),
        ({"position": Alibi()}, "no scores that Alibi"),
        ({"convolution": 1}, "at least 2 taps"),
        ({"value_width": 0}, "value_width must be positive"),
        ({"bias": ("key", "key")}, "twice"),
    ],
)
def test_invalid_settings_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        LinearAttention(2, **fields)


def test_widths_are_checked() -> None:
    with pytest.raises(ConfigError, match="no multiple of attention.heads"):
        LinearAttention(3).check(8)
    with pytest.raises(ConfigError, match="rotates pairs"):
        LinearAttention(8, position=Rope()).check(8)
