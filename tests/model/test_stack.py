"""Stacks of blocks: scanned and looped agree in names, values, caches and dropout; remat recomputes as asked."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt_jax import GPT, init_cache
from gpt_jax.config import Attention, BlockConfig, GatedMlp, Mlp, Shared, Window, pattern
from gpt_jax.config.errors import ConfigError
from gpt_jax.model.stack import canonical, period, stacked, storage_names
from tests.tiny import apply, random_params, tiny

A, B = BlockConfig(Attention(4, mask=Window(3)), GatedMlp(12)), BlockConfig(Attention(4), Mlp(6), dropout=0.1)
TOKENS = jnp.arange(16).reshape(2, 8)


def stack(letters: str, **model: Any) -> Any:
    return tiny(blocks=pattern(letters, A=A, B=B), **model)


@pytest.mark.parametrize(
    "letters, p, names",
    [
        ("AAAA", 1, ["0:4:1"]),
        ("ABAB", 2, ["0:4:2", "1:4:2"]),
        ("AAB" * 2, 3, ["0:6:3", "1:6:3", "2:6:3"]),
        ("ABA", 3, ["0:3:3", "1:3:3", "2:3:3"]),  # 2 does not divide 3
        ("A", 1, ["0:1:1"]),
    ],
)
def test_a_scan_runs_over_groups_of_one_period(letters: str, p: int, names: list[str]) -> None:
    c = stack(letters, scan=True)
    assert period(c.blocks) == p
    assert storage_names(c) == names
    assert storage_names(dataclasses.replace(c, scan=False)) == [str(layer) for layer in range(len(letters))]


@pytest.mark.parametrize("letters", ["AAAA", "ABAB", "ABA", "A"])
def test_stacked_and_canonical_names_convert_both_ways(letters: str) -> None:
    """Anywhere in a tree: parameters, gradients, an optimizer's moments."""
    c = stack(letters, scan=True)
    params = random_params(GPT(dataclasses.replace(c, scan=False)))
    state = {"params": params, "moments": optax.adam(1e-3).init(params)}
    there = stacked(c, state)
    assert set(there["params"]["params"]["blocks"]) == set(storage_names(c))
    back = canonical(there)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)
    assert stacked(dataclasses.replace(c, scan=False), params) is params
    assert list(canonical(there["params"]["params"]["blocks"])) == [str(layer) for layer in range(len(letters))]


def test_more_than_ten_layers_stay_in_order() -> None:
    c = stack("A" * 12, scan=True)
    params = {"blocks": {str(layer): {"bias": jnp.full(2, layer)} for layer in range(12)}}
    there = stacked(c, params)
    np.testing.assert_array_equal(there["blocks"]["0:12:1"]["bias"][:, 0], jnp.arange(12))
    assert list(canonical(there)["blocks"]) == [str(layer) for layer in range(12)]


def test_taps_have_the_same_names_and_values_from_loop_and_scan() -> None:
    results = []
    for scan in (False, True):
        model = GPT(stack("ABAB", scan=scan))
        params = stacked(model.config, random_params(GPT(stack("ABAB"))))
        results.append(jax.jit(lambda p, model=model: model.apply(p, TOKENS, capture="**")[1])(params))
    looped, scanned = results
    assert set(looped) == set(scanned)
    assert {"embedding", "hidden", "blocks/3/attention/probabilities", "blocks/0/mlp/hidden"} <= set(looped)
    for name, value in looped.items():
        np.testing.assert_allclose(scanned[name], value, atol=1e-5, err_msg=name)


def test_a_scanned_model_decodes_with_the_same_cache_as_a_looped_one() -> None:
    scanned, looped = GPT(stack("ABAB", scan=True)), GPT(stack("ABAB"))
    params = random_params(looped)
    caches = [init_cache(model.config, 2, 8) for model in (looped, scanned)]
    a, cache_a = apply(looped, params, TOKENS, cache=caches[0])
    b, cache_b = apply(scanned, stacked(scanned.config, params), TOKENS, cache=caches[1])
    np.testing.assert_array_equal(a, b)
    jax.tree.map(np.testing.assert_array_equal, cache_a, cache_b)


@pytest.mark.parametrize("scan", [False, True])
def test_each_layer_draws_its_own_dropout(scan: bool) -> None:
    model = GPT(tiny(block={"dropout": 0.5}, scan=scan))
    params = stacked(model.config, random_params(GPT(tiny())))
    rngs = {"dropout": jax.random.key(0)}
    _, taps = apply(model, params, TOKENS, train=True, rngs=rngs, capture="**/*_change")
    kept = [np.asarray(taps[f"blocks/{layer}/{name}_change"] != 0) for layer in (0, 1) for name in ("attention", "mlp")]
    for i, a in enumerate(kept):
        assert 0.2 < a.mean() < 0.8
        assert all(0.2 < (a == b).mean() < 0.8 for b in kept[:i])


def test_a_scan_compiles_one_body_for_any_number_of_layers() -> None:
    def program(layers: int) -> int:
        model = GPT(stack("AB" * layers, scan=True))
        shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
        return str(jax.make_jaxpr(model.apply)(shapes, TOKENS)).count("dot_general")

    assert program(2) == program(5) > 0


@pytest.mark.parametrize("remat, kept", [(None, 1), ("full", 2), ("dots", 1)])
def test_remat_recomputes_what_its_policy_says(remat: Any, kept: int) -> None:
    """The products of the forward pass appear again in the backward pass under "full", and not under "dots"."""
    model = GPT(stack("A", remat=remat))
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)

    def loss(params: Any) -> jax.Array:
        return model.apply(params, TOKENS).sum()

    plain = GPT(stack("A"))
    gradient = str(jax.make_jaxpr(jax.grad(loss))(shapes)).count("dot_general")
    base = str(jax.make_jaxpr(jax.grad(lambda p: plain.apply(p, TOKENS).sum()))(shapes)).count("dot_general")
    assert (gradient > base + 4) == (kept == 2)
    assert ("remat" in str(jax.make_jaxpr(jax.grad(loss))(shapes))) == (remat is not None)


def test_layers_may_share_keys_of_several_shapes_where_no_scan_carries_them() -> None:
    mixers = (Attention(4, kv_heads=2), Attention(4, kv_heads=2, value=Shared()), Attention(2, kv_heads=1))
    blocks = tuple(BlockConfig(mixer, GatedMlp(12)) for mixer in mixers)
    model = GPT(dataclasses.replace(tiny(), blocks=blocks))
    params = model.init(jax.random.key(0), TOKENS)
    assert apply(model, params, TOKENS).shape == (*TOKENS.shape, 32)
    with pytest.raises(ConfigError, match="share keys and values of different shapes"):
        scanned = GPT(dataclasses.replace(model.config, scan=True))
        jax.eval_shape(scanned.apply, jax.eval_shape(scanned.init, jax.random.key(0), TOKENS), TOKENS)
