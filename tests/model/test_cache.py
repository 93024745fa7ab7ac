from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax import GPT, init_cache
from gpt_jax.config import Alibi, Attention, BlockConfig, Causal, Embedding, Learned, Window
from gpt_jax.model.mask import Side
from gpt_jax.model.row import Row
from gpt_jax.model.slots import extend, part, read, slots, write
from tests.tiny import random_params, tiny

TOKENS = jnp.arange(16).reshape(2, 8)


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
@given(st.integers(1, 4), st.lists(st.integers(1, 5), min_size=1, max_size=5), st.booleans())
def test_what_is_written_is_found_again_under_its_step(size: int, chunks: list[int], has_window: bool) -> None:
    """Against a dict of everything written: a query sees each of the last `size` steps once, with its own key."""
    total, mask = sum(chunks), Window(size) if has_window else Causal()
    kept = slots(mask, total)
    layer: Any = {name: jnp.zeros((1, 1, kept, 1)) for name in ("key", "value")} | {"state": jnp.ones(3)}
    at = 0
    for chunk in chunks:
        steps = at + jnp.arange(chunk)
        row = Row(steps[None], steps, steps[None], padding=jnp.array([1]), length=total)
        new = steps.astype(jnp.float32).reshape(1, 1, chunk, 1)
        layer, seen, side = extend(layer, {"key": new, "value": -new}, Side(steps, steps[None]), row, mask)
        keys, values = seen["key"], seen["value"]
        np.testing.assert_array_equal(side.positions[0], side.steps - 1)  # after one token of padding
        for query in range(at, at + chunk):
            wanted = range(max(0, query - size + 1) if has_window else 0, query + 1)
            found = {}
            for slot, step in enumerate(side.steps.tolist()):
                if step in wanted:
                    assert step not in found
                    found[step] = (float(keys[0, 0, slot, 0]), float(values[0, 0, slot, 0]))
            assert found == {step: (step, -step) for step in wanted}
        at += chunk
    assert sorted(layer["key"].ravel().tolist()) == list(range(total - kept, total))
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
    logits, cache = model.apply(params, TOKENS, cache=empty)
    assert (int(empty.step), int(cache.step)) == (0, 8)
    np.testing.assert_array_equal(empty.layers[0]["key"], 0)
    assert jax.tree.structure(cache) == jax.tree.structure(empty)  # so that it can be carried through a scan
    assert jax.tree.map(jnp.shape, cache) == jax.tree.map(jnp.shape, empty)
    np.testing.assert_allclose(logits, model.apply(params, TOKENS), atol=1e-5)


def test_a_write_past_the_end_raises_in_an_eager_call() -> None:
    """JAX itself would overwrite the tail."""
    model = GPT(tiny())
    params = random_params(model)
    _, cache = model.apply(params, TOKENS, cache=init_cache(model.config, 2, 10))
    with pytest.raises(ValueError, match="room for 10 tokens and holds 8, so 3 more do not fit"):
        model.apply(params, TOKENS[:, :3], cache=cache)
    model.apply(params, TOKENS[:, :2], cache=cache)


@pytest.mark.parametrize("name", ["segments", "positions"])
def test_segments_and_positions_are_refused_with_a_cache(name: str) -> None:
    model = GPT(tiny())
    with pytest.raises(ValueError, match="a cache holds one document per row and counts its positions"):
        model.apply(random_params(model), TOKENS, cache=init_cache(model.config, 2, 8), **{name: TOKENS})


@pytest.mark.parametrize("attention", [Attention(4, position=Alibi()), Attention(4, mask=Window(3))], ids=repr)
def test_what_stands_in_left_padding_changes_nothing(attention: Attention) -> None:
    model = GPT(tiny(attention))
    params = random_params(model)
    cache = init_cache(model.config, 2, 8, jnp.array([0, 3]))
    a, _ = model.apply(params, TOKENS, cache=cache)
    b, _ = model.apply(params, TOKENS.at[1, :3].set(31), cache=cache)
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1, 3:], b[1, 3:])
    assert not np.array_equal(a[1, :3], b[1, :3])
