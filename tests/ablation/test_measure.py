"""What a trained arm is asked, where the answer is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import GPT
from gpt_jax.ablation.measure import Measure
from gpt_jax.ablation.schema import AttentionDiagnostics
from gpt_jax.analysis.diagnostics import by_position, decode_rate, diagnose
from gpt_jax.config import Attention, Causal, Config, Copy, LinearAttention, ModelConfig, Prefix
from gpt_jax.data import open_data
from gpt_jax.training.evaluate import make_evaluate
from gpt_jax.training.sharding import make_mesh
from tests.tiny import random_params, tiny, tiny_config

T = 6
PLACE = "blocks/0/attention"


def test_even_attention_has_the_entropy_of_its_keys():
    """Query t spreads evenly over t + 1 keys: entropy log(t + 1), 1 / (t + 1) on the first; query 0 doesn't count."""
    even = np.tril(np.ones((1, 2, T, T))) / np.arange(1, T + 1)[:, None]
    found = diagnose(tiny(), {f"{PLACE}/probabilities": even})
    assert found["attention_entropy"] == pytest.approx(np.mean(np.log(np.arange(2, T + 1))))
    assert found["sink_mass"] == pytest.approx(np.mean(1 / np.arange(2, T + 1)))
    assert found["largest_logit"] is None


def test_all_on_the_first_token_is_a_sink():
    sink = np.zeros((1, 2, T, T))
    sink[..., 0] = 1.0
    found = diagnose(tiny(), {f"{PLACE}/probabilities": sink})
    assert (found["attention_entropy"], found["sink_mass"]) == (pytest.approx(0.0, abs=1e-6), 1.0)


def test_the_largest_logit_is_among_those_that_are_seen():
    """q·k / √D with D = 4; the largest product, 50, is of a later key and doesn't count. Head 3 reads key head 1."""
    query, key = np.zeros((1, T, 4, 4)), np.zeros((1, T, 2, 4))
    query[0, 3, 3, 0] = 5.0
    key[0, 2, 1, 0], key[0, 4, 1, 0], key[0, 2, 0, 0] = -4.0, 10.0, 8.0
    model = tiny(Attention(heads=4, kv_heads=2, head_width=4))
    assert diagnose(model, {f"{PLACE}/queries": query, f"{PLACE}/keys": key})["largest_logit"] == 10.0


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
        found = Measure().all(run_of(model, task), params, data, (), None)
        losses[type(mask)] = np.mean([loss for _, loss in found.loss_by_position])
        evaluated = make_evaluate(GPT(model), data, 16, make_mesh(jax.devices()[:1]))(params)["loss"]
        assert losses[type(mask)] == pytest.approx(evaluated, rel=1e-5)
    assert abs(losses[Prefix] - losses[Causal]) > 0.01


def run_of(model: ModelConfig, task: Copy) -> Config:
    return dataclasses.replace(tiny_config(), model=model, data=task)


def test_positions_are_binned_by_weight():
    """Places without targets are left out; bins keep every target."""
    sums = np.zeros((3, 200))
    sums[0, 50:], sums[2, 50:] = np.arange(150) * 2.0, 2.0
    points = by_position(sums)
    places = [place for place, _ in points]
    assert len(points) <= 64 and places == sorted(places) and places[0] >= 45
    assert points[-1][1] > 140 and points[0][1] < 10
    assert by_position(np.ones((3, 8))) == [[float(t), 1.0] for t in range(8)]
