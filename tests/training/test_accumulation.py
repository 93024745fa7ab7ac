"""Micro-batches on several devices: the gradients of one batch, and one sum over the devices."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.config import Attention, Embedding, Head, Lora, ModelConfig, Train, has_dropout
from gpt_jax.training.accumulation import accumulate
from gpt_jax.training.partition import shardings
from gpt_jax.training.sharding import make_mesh, shard_batch, traced_under
from gpt_jax.training.step import _loss
from tests.tiny import random_params, tiny
from tests.training.test_partition import assert_close, make_batch

MODEL = tiny(Attention(heads=4, kv_heads=2), width=16)


def program_of(axes: str, devices: int, parts: int, is_random: bool = False, model: ModelConfig = MODEL) -> Any:
    """The compiled gradients, and what they are called with."""
    mesh = make_mesh(jax.devices()[:devices], axes)
    params = random_params(GPT(model), size=0.3)
    places = shardings(model, mesh, params)

    def of(params: Any, batch: Any) -> Any:
        loss = _loss(GPT(model), Train(1, 8), params, jnp.float32(1 / 32))
        return accumulate(loss, params, batch, jax.random.key(0), parts, is_random)[0]

    arguments = jax.device_put(params, places), shard_batch(make_batch(), mesh, "jit", parts)
    return jax.jit(traced_under(mesh, of), out_shardings=places).lower(*arguments).compile(), arguments


def gradients(*given: Any, **options: Any) -> Any:
    program, arguments = program_of(*given, **options)
    return jax.tree.map(np.asarray, program(*arguments))


@pytest.mark.parametrize("axes", ["data=4", "data=2,fsdp=2", "data=2,tensor=2"])
@pytest.mark.parametrize("changes", [{}, {"scan": True, "remat": "dots"}], ids=["looped", "scanned"])
def test_gradients_are_those_of_one_batch(axes: str, changes: dict[str, Any]) -> None:
    model = tiny(Attention(heads=4, kv_heads=2), width=16, **changes)
    assert_close(gradients(axes, 4, 2, model=model), gradients("data=1", 1, 1, model=model))


def test_by_blocks_too() -> None:
    """The loss by blocks adds up its own gradients, inside of the micro-batches."""
    model = tiny(Attention(heads=4, kv_heads=2), width=16, head=Head(block=4))
    assert_close(gradients("data=2,fsdp=2", 4, 2, model=model), gradients("data=1", 1, 1))


def test_devices_add_once() -> None:
    """No communication in the loop over micro-batches: each collective is in the main computation."""
    text = program_of("data=4", 4, 2)[0].as_text()
    main = text[text.index("\nENTRY") :]
    communication = re.compile(r"= .*all-(reduce|gather)\(")
    assert " while(" in main and communication.search(main) and not communication.search(text[: -len(main)])


DRAWS = {
    "embedding": {"embedding": Embedding(dropout=0.1)},
    "residuals": {"blocks": (dataclasses.replace(MODEL.blocks[0], dropout=0.1),)},
    "attention": {"blocks": (dataclasses.replace(MODEL.blocks[0], attention=Attention(heads=4, dropout=0.1)),)},
    "adapters": {"blocks": (dataclasses.replace(MODEL.blocks[0], adapter=Lora(rank=2, dropout=0.1)),)},
}


@pytest.mark.parametrize("name", DRAWS)
def test_every_dropout_is_known(name: str) -> None:
    """Devices that drew for their own rows alone would draw the same numbers."""
    assert has_dropout(dataclasses.replace(MODEL, **DRAWS[name])) and not has_dropout(MODEL)
