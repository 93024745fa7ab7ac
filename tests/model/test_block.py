"""A block's residual arrangements: which norms it has, what it adds, and how its kernels are initialised."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.config import Attention, BlockConfig, GatedMlp, Init, LayerNorm, RmsNorm
from gpt_jax.model.block import Block
from gpt_jax.model.row import Row
from tests.tiny import random_params, tiny

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 8)), jnp.float32)
ROW = Row(jnp.zeros((2, 6), jnp.int32), jnp.arange(6), jnp.arange(6)[None], layer=0)


def made(residual: Any, mlp: Any = "gated", **block: Any) -> tuple[Block, Any, Any]:
    """A block, random parameters of it, and the two sublayers with their norms left to the test."""
    model = tiny(Attention(2), mlp, 1, block={"residual": residual, "norm": LayerNorm()} | block)
    params = random_params(GPT(model))["params"]["blocks"]["0"]
    return Block(model.blocks[0], model), params, model


def apply(block: Block, params: Any, x: jax.Array = X) -> jax.Array:
    return block.apply({"params": params}, x, ROW, None, {}, False)[0]


def with_zero_outputs(params: Any) -> Any:
    zero = {"attention": "output", "mlp": "down"}
    return params | {
        name: params[name] | {kernel: jax.tree.map(jnp.zeros_like, params[name][kernel])}
        for name, kernel in zero.items()
        if name in params
    }


@pytest.mark.parametrize("mlp", [GatedMlp(12), None])
@pytest.mark.parametrize("residual", ["pre", "parallel"])
def test_with_zeroed_output_projections_a_block_is_the_identity(residual: Any, mlp: Any) -> None:
    if residual == "parallel" and mlp is None:
        mlp = GatedMlp(5)
    block, params, _ = made(residual, mlp)
    np.testing.assert_array_equal(apply(block, with_zero_outputs(params)), X)
    assert not np.allclose(apply(block, params), X, atol=0.1)


def test_with_zeroed_output_projections_a_sandwich_adds_its_norms_biases_alone() -> None:
    block, params, _ = made("sandwich")
    wanted = X + params["attention_output_norm"]["bias"] + params["mlp_output_norm"]["bias"]
    np.testing.assert_allclose(apply(block, with_zero_outputs(params)), wanted, atol=1e-6)


def test_post_normalizes_the_sum() -> None:
    block, params, _ = made("post", norm=RmsNorm(scale=False))
    out = apply(block, params)
    np.testing.assert_allclose(jnp.square(out).mean(-1), 1, atol=1e-4)


NORMS = {
    "pre": {"attention_norm", "mlp_norm"},
    "post": {"attention_norm", "mlp_norm"},
    "sandwich": {"attention_norm", "attention_output_norm", "mlp_norm", "mlp_output_norm"},
    "parallel": {"norm"},
}


@pytest.mark.parametrize("residual", NORMS)
def test_an_arrangement_has_its_own_norms_and_no_other(residual: Any) -> None:
    _, params, _ = made(residual)
    assert set(params) == NORMS[residual] | {"attention", "mlp"}


@pytest.mark.parametrize("residual", ["pre", "post", "sandwich"])
def test_without_an_mlp_nothing_of_it_is_left(residual: Any) -> None:
    _, params, _ = made(residual, None)
    assert set(params) == {name for name in NORMS[residual] if "mlp" not in name} | {"attention"}


def test_dropout_acts_on_what_each_sublayer_adds() -> None:
    model = GPT(tiny(layers=1, block={"dropout": 0.5}))
    variables, tokens = random_params(model), jnp.arange(16).reshape(2, 8)
    options = {"train": True, "rngs": {"dropout": jax.random.key(0)}, "capture": "**"}
    _, taps = model.apply(variables, tokens, **options)
    changes = [taps[f"blocks/0/{name}_change"] for name in ("attention", "mlp")]
    np.testing.assert_allclose(taps["blocks/0/output"], taps["embedding"] + changes[0] + changes[1], atol=1e-6)
    for change in changes:
        assert 0.2 < float((change == 0).mean()) < 0.8
    assert not np.array_equal(changes[0] == 0, changes[1] == 0)  # each has its own key
    block, params, _ = made("pre", dropout=0.5)
    np.testing.assert_array_equal(apply(block, params), apply(made("pre")[0], params))


def test_initial_values_have_the_deviations_asked_for() -> None:
    init = Init(embedding_std=0.5, kernel_std=0.1, head_std=0.3)
    c = dataclasses.replace(tiny(Attention(4, head_width=32), GatedMlp(128), 8), width=64, init=init)
    params = GPT(c).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    np.testing.assert_allclose(params["embedding"]["table"].std(), 0.5, rtol=0.1)
    layer = params["blocks"]["5"]
    for kernel in (layer["attention"]["query"], layer["mlp"]["up"], layer["mlp"]["gate"]):
        np.testing.assert_allclose(kernel["kernel"].std(), 0.1, rtol=0.1)
    for kernel in (layer["attention"]["output"], layer["mlp"]["down"]):  # GPT-2: divided by √(2L)
        np.testing.assert_allclose(kernel["kernel"].std(), 0.1 / 16**0.5, rtol=0.1)


@pytest.mark.parametrize("output, ratio", [("same", 1.0), ("zero", 0.0)])
def test_the_output_kernels_start_as_asked(output: Any, ratio: float) -> None:
    c = tiny(width=32, init=Init(kernel_std=None, output=output))
    params = GPT(c).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]["blocks"]["1"]
    np.testing.assert_allclose(params["attention"]["query"]["kernel"].std(), 32**-0.5, rtol=0.15)
    np.testing.assert_allclose(params["attention"]["output"]["kernel"].std(), ratio * 16**-0.5, rtol=0.15)
    np.testing.assert_allclose(params["mlp"]["down"]["kernel"].std(), ratio * 12**-0.5, rtol=0.15)


def test_blocks_of_one_kind_share_a_configuration_and_not_a_value() -> None:
    assert tiny().blocks[0] == tiny().blocks[1] == BlockConfig(Attention(4, head_width=4), GatedMlp(12))
    params = GPT(tiny()).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]["blocks"]
    assert not np.allclose(params["0"]["mlp"]["up"]["kernel"], params["1"]["mlp"]["up"]["kernel"])
