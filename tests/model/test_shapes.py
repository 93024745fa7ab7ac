"""Shapes of parameters are those of the initial parameters, under the names that each form of storage has."""

import jax
import jax.numpy as jnp

from gpt_jax import GPT
from gpt_jax.config import Lora
from gpt_jax.model.shapes import canonical_shapes, parameter_shapes
from tests.tiny import tiny


def shape(leaf):
    return leaf.shape, leaf.dtype


def test_shapes_and_types_are_those_of_the_initial_parameters():
    model = tiny(scan=True, param_dtype="bfloat16")
    made = jax.jit(GPT(model).init)(jax.random.key(0), jnp.zeros((2, 5), jnp.int32))
    assert jax.tree.map(shape, parameter_shapes(model)) == jax.tree.map(shape, made)


def test_canonical_shapes_are_per_layer_for_looped_and_scanned_models():
    block = {"adapter": Lora(rank=3, targets=("**/query",))}
    looped, scanned = canonical_shapes(tiny(block=block)), canonical_shapes(tiny(block=block, scan=True))
    assert looped == scanned
    assert looped["blocks/1/attention/query/adapter/a/kernel"] == (8, 3)
    assert looped["blocks/0/mlp/up/kernel"] == (8, 12)
