"""The cross entropy by blocks equals that of all logits at once: loss, sums and gradients, also over devices."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.config import Adamw, Config, Head, ModelConfig, Text, Train
from gpt_jax.data import Batch
from gpt_jax.training import blockwise
from gpt_jax.training.evaluate import weighted_terms
from gpt_jax.training.sharding import batch_sharding, make_mesh, replicated, traced_under
from gpt_jax.training.step import _loss
from tests.tiny import VOCABULARY, random_params, tiny

HEADS = {
    "tied": Head(),
    "untied": Head(tied=False, bias=True),
    "softcap": Head(softcap=3.0, scale=0.5),
}


def make_batch(rows: int = 4, positions: int = 10, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, VOCABULARY, (2, rows, positions))
    weights = rng.choice([0.0, 0.5, 1.0], (rows, positions))
    ids = [jnp.asarray(x, jnp.int32) for x in (tokens, targets, np.ones_like(tokens))]
    return Batch(*ids[:2], jnp.asarray(weights, jnp.float32), ids[2], jnp.arange(positions)[None] + 0 * ids[0])


def with_block(model: ModelConfig, block: int | None) -> GPT:
    return GPT(dataclasses.replace(model, head=dataclasses.replace(model.head, block=block)))


def gradient_of(model: GPT, batch: Batch, z_loss: float | None):
    config = Train(1, len(batch.tokens), z_loss=z_loss)

    def objective(params):
        return _loss(model, config, params, jnp.float32(0.25))(params, batch, jax.random.key(0))

    return jax.value_and_grad(objective, has_aux=True)


def assert_equal(found, expected) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("block", [1, 8, 12])
def test_loss_and_gradients_are_those_of_all_logits(name: str, block: int) -> None:
    """Blocks that divide the 4 × 10 tokens and blocks that do not."""
    model, batch = tiny(head=HEADS[name]), make_batch()
    params = random_params(GPT(model))
    whole = jax.jit(gradient_of(with_block(model, None), batch, 0.01))(params)
    parts = jax.jit(gradient_of(with_block(model, block), batch, 0.01))(params)
    assert_equal(parts, whole)


def test_targets_far_below_the_largest_logit() -> None:
    """Their exp() overflows in the fast way; the loss and gradients are exact all the same."""
    model, batch = tiny(head=HEADS["untied"]), make_batch()
    params = random_params(GPT(model))
    params["params"]["head"]["bias"] = params["params"]["head"]["bias"].at[3].add(200.0)
    whole = jax.jit(gradient_of(with_block(model, None), batch, None))(params)
    parts = jax.jit(gradient_of(with_block(model, 8), batch, None))(params)
    assert np.isfinite(whole[0][0]) and float(whole[0][0]) > 100
    assert_equal(parts, whole)


def test_evaluation_gives_the_same_terms() -> None:
    model, batch = tiny(), make_batch()
    params = random_params(GPT(model))
    found, expected = (
        jax.jit(weighted_terms, static_argnums=0)(with_block(model, b), params, batch) for b in (12, None)
    )
    assert_equal(found, expected)


def test_devices_add_their_gradients_once() -> None:
    """On two devices the numbers are those of one, and no sum over devices is inside the loop over blocks."""
    mesh, model, batch = make_mesh(jax.devices()[:2]), tiny(), make_batch()
    params = random_params(GPT(model))
    given = jax.device_put(params, replicated(mesh))

    def gradients(params, batch):
        return gradient_of(with_block(model, 6), batch, 0.01)(params)

    program = jax.jit(traced_under(mesh, gradients), out_shardings=replicated(mesh))
    placed = jax.device_put(batch, batch_sharding(mesh))
    assert_equal(program(given, placed), jax.jit(gradient_of(with_block(model, None), batch, 0.01))(params))
    text = program.lower(given, placed).compile().as_text()
    main = text[text.index("\nENTRY") :]
    communication = re.compile(r"= .*all-(reduce|gather)\(")
    assert " while(" in main and communication.search(main) and not communication.search(text[: -len(main)])


def test_the_size_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    assert blockwise.block_length(model, 40) is None
    monkeypatch.setattr(blockwise, "LARGEST", 20 * VOCABULARY)
    assert blockwise.block_length(model, 40) == 16
    assert blockwise.block_length(model, 20) is None
    monkeypatch.setattr(blockwise, "LARGEST", 1)
    assert blockwise.block_length(model, 40) == 1
    assert blockwise.block_length(dataclasses.replace(model, head=Head(block=7)), 40) == 7


def test_logits_of_a_block_are_the_largest_array() -> None:
    """The point of it: 64 rows of 16 tokens in blocks of 64."""
    model, batch = tiny(vocab_size=4096), make_batch(64, 16)
    shapes = jax.eval_shape(GPT(model).init, jax.random.key(0), batch.tokens)

    def peak(block: int | None) -> int:
        program = jax.jit(gradient_of(with_block(model, block), batch, None))
        return program.lower(shapes).compile().memory_analysis().temp_size_in_bytes

    assert peak(64) < 0.3 * peak(None)


def test_a_block_must_be_positive() -> None:
    with pytest.raises(ValueError, match="head.block"):
        Config(tiny(head=Head(block=0)), Text(), Adamw(1e-3), Train(1, 1))
