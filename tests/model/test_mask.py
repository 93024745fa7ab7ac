import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.config import Causal, MaskConfig, Window
from gpt_jax.conversion import ConfigError
from gpt_jax.model.mask import allowed, spans
from tests import reference


@settings(max_examples=40)
@given(st.data())
def test_equals_brute_force(data: st.DataObject) -> None:
    """Any queries against any slots (negative: not yet written), with documents and left padding."""
    B, T, S = 2, data.draw(st.sampled_from([1, 3])), 5
    mask = data.draw(st.one_of(st.just(Causal()), st.builds(Window, st.integers(1, 8))))

    def steps(n: int, low: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, 9), min_size=n, max_size=n))

    queries, keys = steps(T, 0), steps(S, -3)
    query_segments, key_segments = ([[x % 2 for x in steps(n, 0)] for _ in range(B)] for n in (T, S))
    padding = data.draw(st.none() | st.lists(st.integers(0, 4), min_size=B, max_size=B))
    packed = data.draw(st.booleans())
    seen = allowed(
        mask,
        jnp.array(queries),
        jnp.array(keys),
        jnp.array(query_segments) if packed else None,
        jnp.array(key_segments) if packed else None,
        None if padding is None else jnp.array(padding),
    )
    for b, t, s in np.ndindex(B, T, S):
        expected = keys[s] >= 0 and reference.may_see(mask, queries[t], keys[s])
        expected &= padding is None or keys[s] >= padding[b]
        expected &= not packed or query_segments[b][t] == key_segments[b][s]
        assert bool(seen[min(b, len(seen) - 1), t, s]) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9])
def test_a_window_of_w_is_w_keys_the_querys_own_included(size: int) -> None:
    seen = allowed(Window(size), jnp.arange(8), jnp.arange(8))[0]
    np.testing.assert_array_equal(seen.sum(-1), np.minimum(np.arange(8) + 1, size))
    assert bool(seen.diagonal().all())


def test_a_window_as_long_as_the_row_is_causal() -> None:
    steps = jnp.arange(8)
    np.testing.assert_array_equal(allowed(Window(8), steps, steps), allowed(Causal(), steps, steps))
    np.testing.assert_array_equal(allowed(Causal(), steps, steps)[0], np.tril(np.ones((8, 8), bool)))


@pytest.mark.parametrize("length", [1, 64, 65, 257])
@pytest.mark.parametrize("mask", [Causal(), Window(1), Window(64), Window(100)], ids=repr)
def test_spans_hold_every_query_once_and_leave_out_only_keys_that_none_may_see(mask: MaskConfig, length: int) -> None:
    seen = np.asarray(allowed(mask, jnp.arange(length), jnp.arange(length))[0])
    covered = np.zeros_like(seen)
    queries = []
    for t, s in spans(mask, length):
        queries += range(length)[t]
        covered[t, s] = True
    assert queries == list(range(length))
    assert not (seen & ~covered).any()


def test_spans_of_a_long_row_save_work() -> None:
    """Four spans compute 5/8 of the scores; a short window's far fewer."""

    def work(mask: MaskConfig) -> int:
        return sum(len(range(1024)[t]) * len(range(1024)[s]) for t, s in spans(mask, 1024))

    assert work(Causal()) == 1024**2 * 5 // 8
    assert work(Window(64)) < 1024**2 / 3


def test_a_mask_that_nothing_implements_is_refused_instead_of_read_as_causal() -> None:
    class Unknown(MaskConfig):
        pass

    MaskConfig.choices.pop("Unknown")
    with pytest.raises(ConfigError, match="Unknown has no implementation beside those of Causal, Window"):
        allowed(Unknown(), jnp.arange(3), jnp.arange(3))
