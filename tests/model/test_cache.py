"""The cache as a pytree: its sizes, what each query finds in it (against a dict), and misuse that raises."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax import GPT, init_cache
from gpt_jax.config import Alibi, Attention, BlockConfig, Causal, Embedding, Learned, MaskConfig, Window
from gpt_jax.model.mask import Side
from gpt_jax.model.row import Row
from gpt_jax.model.slots import extend, part, read, slots, write
from tests.tiny import apply, random_params, tiny

TOKENS = jnp.arange(16).reshape(2, 8)


@partial(jax.jit, static_argnums=(3, 4))
def append(layer: Any, new: Any, at: jax.Array, mask: MaskConfig, length: int) -> Any:
    """The layer's cache after `new` tokens from step `at` on, what they attend to, and the side of these keys."""
    tokens = new["key"].shape[2]
    steps = at + jnp.arange(tokens)
    row = Row(jnp.zeros((1, tokens), int), steps, steps[None], padding=jnp.array([1]), length=length)
    return extend(layer, new, Side(steps, steps[None]), row, mask)


def test_a_layer_keeps_as_many_slots_as_a_query_may_see() -> None:
    c = tiny(blocks=(BlockConfig(Attention(4, 2, 6, Window(3)), None), BlockConfig(Attention(4), None)))
    cache = init_cache(c, 5, 10)
    shapes = [{name: leaf.shape for name, leaf in layer.items()} for layer in cache.layers]
    assert shapes == [{"key": (5, 2, 3, 6), "value": (5, 2, 3, 6)}, {"key": (5, 4, 10, 2), "value": (5, 4, 10, 2)}]
    assert slots(Window(30), 10) == 10
    assert (int(cache.step), cache.padding.tolist(), cache.length) == (0, [0] * 5, 10)


def test_a_cache_holds_what_the_model_computes_in() -> None:
    assert init_cache(tiny(dtype="bfloat16"), 1, 4).layers[0]["key"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="room for at least 1 token"):
        init_cache(tiny(), 1, 0)
    with pytest.raises(ValueError, match="17 tokens do not fit the learned table of 16 positions"):
        init_cache(tiny(embedding=Embedding(Learned())), 1, 17)


@settings(max_examples=25)
@given(st.integers(1, 4), st.lists(st.sampled_from([1, 2, 3, 5]), min_size=1, max_size=5), st.booleans())
def test_each_query_finds_every_step_it_may_see_once(size: int, chunks: list[int], is_ring: bool) -> None:
    """Against a dict of everything written: a query sees each of the last `size` steps once, with its own key."""
    total = sum(chunks)
    slots = size if is_ring else -(-total // 5) * 5  # multiples of 5, so that few shapes are compiled
    mask, length = (Window(size), 100) if is_ring else (Causal(), slots)
    layer: Any = {name: np.zeros((1, 1, slots, 1), np.float32) for name in ("key", "value")}
    layer["state"] = np.ones(3, np.float32)
    at = 0
    for chunk in chunks:
        new = np.arange(at, at + chunk, dtype=np.float32).reshape(1, 1, chunk, 1)
        layer, found_again, side = append(layer, {"key": new, "value": -new}, jnp.array(at), mask, length)
        keys, values = np.asarray(found_again["key"]), np.asarray(found_again["value"])
        np.testing.assert_array_equal(side.positions[0], side.steps - 1)  # after one token of padding
        for query in range(at, at + chunk):
            wanted = range(max(0, query - size + 1) if is_ring else 0, query + 1)
            found = {}
            for slot, step in enumerate(side.steps.tolist()):
                if step in wanted:
                    assert step not in found
                    found[step] = (float(keys[0, 0, slot, 0]), float(values[0, 0, slot, 0]))
            assert found == {step: (step, -step) for step in wanted}
        at += chunk
    kept = sorted(np.ravel(layer["key"]).tolist())[-min(slots, total) :]
    assert kept == list(range(total - min(slots, total), total))
    np.testing.assert_array_equal(layer["state"], 1)  # what has no slots stays


def test_without_a_cache_nothing_is_read_and_nothing_kept() -> None:
    assert read(None, "state") is None and part(None, "state") is None and write(None, state=jnp.ones(1)) is None
    side, new = Side(jnp.arange(2), jnp.arange(2)[None]), {"key": jnp.ones((1, 1, 2, 1))}
    cache, seen, keys = extend(None, new, side, Row(jnp.ones((1, 2), int), *side[:2]), Causal())
    assert cache is None and seen is new and keys is side


def test_the_cache_goes_in_and_comes_out_and_nothing_else_changes() -> None:
    model = GPT(tiny())
    params = random_params(model)
    empty = init_cache(model.config, 2, 12)
    logits, cache = apply(model, params, TOKENS, cache=empty)
    assert (int(empty.step), int(cache.step)) == (0, 8)
    np.testing.assert_array_equal(empty.layers[0]["key"], 0)
    assert jax.tree.structure(cache) == jax.tree.structure(empty)  # so that it can be carried through a scan
    assert jax.tree.map(jnp.shape, cache) == jax.tree.map(jnp.shape, empty)
    np.testing.assert_allclose(logits, apply(model, params, TOKENS), atol=1e-5)


def test_a_write_past_the_end_raises_in_an_eager_call() -> None:
    """JAX itself would overwrite the tail."""
    model = GPT(tiny())
    params = random_params(model)
    _, cache = apply(model, params, TOKENS, cache=init_cache(model.config, 2, 10))
    with pytest.raises(ValueError, match="room for 10 tokens and holds 8, so 3 more do not fit"):
        model.apply(params, TOKENS[:, :3], cache=cache)
    model.apply(params, TOKENS[:, :2], cache=cache)


@pytest.mark.parametrize("name", ["segments", "positions"])
def test_segments_and_positions_are_refused_with_a_cache(name: str) -> None:
    model = GPT(tiny())
    with pytest.raises(ValueError, match="a cache holds one document per row and counts its positions"):
        model.apply(random_params(model), TOKENS, cache=init_cache(model.config, 2, 8), **{name: TOKENS})


@pytest.mark.parametrize("attention", [Attention(4, position=Alibi()), Attention(4, mask=Window(3))], ids=repr)
def test_left_padding_changes_no_logit_of_real_tokens(attention: Attention) -> None:
    model = GPT(tiny(attention))
    params = random_params(model)
    cache = init_cache(model.config, 2, 8, jnp.array([0, 3]))
    a, _ = apply(model, params, TOKENS, cache=cache)
    b, _ = apply(model, params, TOKENS.at[1, :3].set(31), cache=cache)
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1, 3:], b[1, 3:])
    assert not np.array_equal(a[1, :3], b[1, :3])
