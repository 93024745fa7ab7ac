"""What is measured of a trained arm, on models where the answer is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.ablation.endpoint import FinalLoss
from gpt_jax.ablation.measure import Measure
from gpt_jax.ablation.schema import AttentionDiagnostics
from gpt_jax.analysis.diagnostics import decode_rate
from gpt_jax.config import Attention, Causal, Config, Copy, LinearAttention, ModelConfig, Prefix
from gpt_jax.data import open_data
from gpt_jax.training.evaluate import make_evaluate
from gpt_jax.training.sharding import make_mesh
from tests.tiny import random_params, tiny, tiny_config


def test_diagnostics_of_a_model_without_softmax_are_unknown():
    model = tiny(LinearAttention(heads=2), vocab_size=9)
    params = GPT(model).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    data = open_data(Copy(symbols=8, length=4, validation_rows=4), 16, 0)
    found = Measure().diagnostics(model, params, data)
    assert found == AttentionDiagnostics(None, None, None)
    assert decode_rate(model, params, rounds=1) > 0


def test_a_model_with_prefixes_is_asked_as_it_was_trained():
    """Its prompts see themselves whole: accuracy is that of the run's own evaluation, not of a causal reading."""
    task = Copy(symbols=8, length=4, validation_rows=16)
    data, losses = open_data(task, 16, 0), {}
    for mask in (Prefix(), Causal()):
        model = tiny(Attention(heads=4, head_width=4, mask=mask), vocab_size=9)
        params = random_params(GPT(model))
        found, _ = Measure().all(run_of(model, task), params, data, (), None, FinalLoss())
        losses[type(mask)] = np.mean([loss for _, loss in found.loss_by_position])
        evaluated = make_evaluate(GPT(model), data, 16, make_mesh(jax.devices()[:1]))(params)["loss"]
        assert losses[type(mask)] == pytest.approx(evaluated, rel=1e-5)
    assert abs(losses[Prefix] - losses[Causal]) > 0.01


def run_of(model: ModelConfig, task: Copy) -> Config:
    return dataclasses.replace(tiny_config(), model=model, data=task)
