"""Masks against brute force over every pair of a query and a key (hypothesis)."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.config import Causal, Chunk, MaskConfig, Prefix, Window
from gpt_jax.config.errors import ConfigError
from gpt_jax.model.mask import Side, allowed, spans
from tests import reference

MASKS = st.one_of(
    st.just(Causal()), st.builds(Window, st.integers(1, 8)), st.builds(Chunk, st.integers(1, 8)), st.just(Prefix())
)


def row(length: int) -> Side:
    return Side(jnp.arange(length), jnp.arange(length)[None])


@settings(max_examples=60)
@given(st.data())
def test_masks_equal_brute_force_over_every_pair(data: st.DataObject) -> None:
    """Any queries against any slots (negative: not yet written), with documents, left padding and prefixes."""
    B, T, S = 2, data.draw(st.sampled_from([1, 3])), 5
    mask = data.draw(MASKS)

    def draw(n: int, low: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, 9), min_size=n, max_size=n))

    steps = {"queries": draw(T, 0), "keys": draw(S, -3)}
    padding = data.draw(st.none() | st.lists(st.integers(0, 4), min_size=B, max_size=B))
    prefix = data.draw(st.none() | st.lists(st.integers(0, 9), min_size=B, max_size=B))
    packed = data.draw(st.booleans())
    segments = {name: [[x % 2 for x in draw(len(s), 0)] for _ in range(B)] for name, s in steps.items()}
    shifts = [0] * B if padding is None else padding
    positions = {name: [[max(x - shift, 0) for x in s] for shift in shifts] for name, s in steps.items()}
    sides = [
        Side(jnp.array(steps[name]), jnp.array(positions[name]), jnp.array(segments[name]) if packed else None)
        for name in steps
    ]
    seen = allowed(mask, *sides, *(None if given is None else jnp.array(given) for given in (padding, prefix)))
    for b, t, s in np.ndindex(B, T, S):
        q, k = steps["queries"][t], steps["keys"][s]
        at = positions["queries"][b][t], positions["keys"][b][s]
        expected = k >= 0 and reference.may_see(mask, q, k, *at, 0 if prefix is None else prefix[b])
        expected &= padding is None or k >= padding[b]
        expected &= not packed or segments["queries"][b][t] == segments["keys"][b][s]
        assert bool(seen[min(b, len(seen) - 1), t, s]) == expected


def test_a_chunk_begins_anew_every_size_positions_of_a_document() -> None:
    side = Side(jnp.arange(8), jnp.array([[0, 1, 2, 3, 4, 0, 1, 2]]), jnp.array([[0] * 5 + [1] * 3]))
    wanted = np.zeros((8, 8), bool)
    for start, stop in [(0, 3), (3, 5), (5, 8)]:
        wanted[start:stop, start:stop] = np.tril(np.ones((stop - start,) * 2, bool))
    np.testing.assert_array_equal(allowed(Chunk(3), side, side)[0], wanted)


def test_a_prefix_sees_itself_whole_and_the_rest_is_causal() -> None:
    seen = allowed(Prefix(), row(4), row(4), prefix=jnp.array([3, 0]))
    np.testing.assert_array_equal(seen[0], np.array([[1, 1, 1, 0]] * 3 + [[1, 1, 1, 1]], bool))
    np.testing.assert_array_equal(seen[1], np.tril(np.ones((4, 4), bool)))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9])
def test_a_window_of_w_is_w_keys_the_querys_own_included(size: int) -> None:
    seen = allowed(Window(size), row(8), row(8))[0]
    np.testing.assert_array_equal(seen.sum(-1), np.minimum(np.arange(8) + 1, size))
    assert bool(seen.diagonal().all())


def test_a_window_as_long_as_the_row_is_causal() -> None:
    np.testing.assert_array_equal(allowed(Window(8), row(8), row(8)), allowed(Causal(), row(8), row(8)))
    np.testing.assert_array_equal(allowed(Causal(), row(8), row(8))[0], np.tril(np.ones((8, 8), bool)))


@pytest.mark.parametrize("length", [1, 64, 65, 257])
@pytest.mark.parametrize("mask", [Causal(), Window(1), Window(64), Window(100), Chunk(70), Prefix()], ids=repr)
def test_spans_hold_every_query_once_and_leave_out_only_keys_that_none_may_see(mask: MaskConfig, length: int) -> None:
    prefix = jnp.array([length // 2]) if isinstance(mask, Prefix) else None
    seen = np.asarray(allowed(mask, row(length), row(length), prefix=prefix)[0])
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
        allowed(Unknown(), row(3), row(3))
