"""Generation with parameters divided over a mesh: the text of one device, and a divided cache."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from gpt_jax import GPT, Generation, Greedy, Sampler, generate
from gpt_jax.config import (
    Attention,
    Delta,
    Head,
    Latent,
    LinearAttention,
    ModelConfig,
    Rope,
    Window,
)
from gpt_jax.decoding.generate import _Request
from gpt_jax.training.partition import shardings
from gpt_jax.training.sharding import make_mesh
from tests.tiny import random_params, tiny

KEY, NEW = jax.random.key(3), 12
PROMPTS = [[1, 2, 3, 4, 5], [7], [9, 8, 7], [3, 3]]
KINDS: dict[str, Any] = {
    "grouped": Attention(heads=4, kv_heads=2, position=Rope()),
    "window": Attention(heads=4, mask=Window(4), position=Rope()),
    "latent": Latent(heads=4, rank=8, head_width=4, rotary_width=4),
    "linear": LinearAttention(heads=4),
    "delta": Delta(heads=4),
}


def model_of(kind: str) -> ModelConfig:
    return tiny(KINDS[kind], width=16, context_length=32, head=Head(tied=False))


@functools.cache
def text(kind: str, axes: str | None, sampler: Any) -> Generation:
    model = GPT(model_of(kind))
    params = random_params(model, size=0.3)
    if axes is not None:
        params = jax.device_put(params, shardings(model.config, make_mesh(jax.devices()[:4], axes), params))
    return generate(model, params, PROMPTS, key=KEY, max_new_tokens=NEW, sampler=sampler)


def assert_same(found: Generation, expected: Generation) -> None:
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_divided_model_writes_the_text_of_one_device(kind: str) -> None:
    assert_same(text(kind, "fsdp=2,tensor=2", Greedy()), text(kind, None, Greedy()))


@pytest.mark.parametrize(
    ("kind", "axes"),
    [
        *(("grouped", axes) for axes in ("data=2,tensor=2", "tensor=4", "data=4", "data=2,sequence=2")),
        ("linear", "data=2,sequence=2"),  # an axis that divides no positions in decoding
    ],
)
def test_on_any_mesh(kind: str, axes: str) -> None:
    assert_same(text(kind, axes, Sampler(0.9)), text(kind, None, Sampler(0.9)))


def test_the_cache_is_divided() -> None:
    """Rows over `data`, heads over `tensor`: a quarter on each device."""
    model = GPT(model_of("grouped"))
    params = random_params(model, size=0.3)
    placed = jax.device_put(params, shardings(model.config, make_mesh(jax.devices()[:4], "data=2,tensor=2"), params))
    request = _Request(model, placed, PROMPTS, KEY, NEW, Greedy(), (), False, None)
    request.begin()
    for leaf in jax.tree.leaves(request.cache.layers):
        assert leaf.addressable_shards[0].data.nbytes * 4 == leaf.nbytes
