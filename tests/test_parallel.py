"""A training step gives the same numbers on one device and on several.

Raw gradients, read from SGD's momentum after one step, and all metrics are compared to those of one device, for `jit`
and `pmap`, with and without micro-batches, and for parameters sharded by path. Adam would hide a wrong factor, since it
divides by the size of the gradient. The rows of the batch differ in their number of targets, so a mean of means fails.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gpt_jax import GPT
from gpt_jax.config import Adamw, Attention, Config, Sgd, Text, Train
from gpt_jax.data import Batch
from gpt_jax.model.paths import map_with_path, matches
from gpt_jax.training.sharding import compile_step, make_mesh, replicate, shard_batch
from gpt_jax.training.state import init_state
from gpt_jax.training.step import make_train_step
from tests.tiny import VOCABULARY, random_params, tiny

ROWS, LENGTH = 8, 8


def make_config(accumulate=1, dropout=0.0, optimizer=None, **model):
    train = Train(10, ROWS, accumulate=accumulate, clip_norm=None, z_loss=0.01)
    optimizer = Sgd(momentum=0.9) if optimizer is None else optimizer
    return Config(
        tiny(Attention(4, kv_heads=4, head_width=4), block={"dropout": dropout}, **model), Text(), optimizer, train
    )


def make_batch():
    """Rows whose numbers of targets of weight 1 differ much."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCABULARY, (ROWS, LENGTH + 1)).astype(np.int32)
    weights = (rng.random((ROWS, LENGTH)) < np.linspace(0.05, 1.0, ROWS)[:, None]).astype(np.float32)
    ones = np.ones((ROWS, LENGTH), np.int32)
    return Batch(ids[:, :-1], ids[:, 1:], weights, ones, ones * np.arange(LENGTH, dtype=np.int32))


def start(config):
    model = GPT(config.model)
    return make_train_step(model, config), init_state(model, config).replace(params=random_params(model))


def raw(state, metrics):
    """(gradients, metrics) of a first step, after which the momentum is the gradient."""
    return jax.device_get((state.optimizer[0].trace, metrics))


def one_step(config, devices, parallel):
    mesh = make_mesh(jax.devices()[:devices])
    train_step, state = start(config)
    step = compile_step(train_step, mesh, parallel)
    return raw(*step(replicate(state, mesh), shard_batch(make_batch(), mesh, parallel, config.train.accumulate)))


@pytest.fixture(scope="module")
def alone():
    train_step, state = start(make_config())
    return raw(*jax.jit(train_step)(state, jax.tree.map(jnp.asarray, make_batch())))


def check(result, expected):
    gradients, metrics = result
    for name, value in expected[1].items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max()), gradients, expected[0]
    )


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
@pytest.mark.parametrize(("devices", "accumulate"), [(1, 1), (4, 1), (2, 4)])
def test_data_parallel_gradients_equal_those_of_one_device(alone, devices, accumulate, parallel):
    check(one_step(make_config(accumulate), devices, parallel), alone)


RULES = {
    "fsdp": {"blocks/**/kernel": P("data", None), "embedding/table": P("data", None)},
    "tensor": {
        "blocks/**/query/kernel": P(None, "data"),
        "blocks/**/key/kernel": P(None, "data"),
        "blocks/**/value/kernel": P(None, "data"),
        "blocks/**/attention/output/kernel": P("data", None),
        "blocks/**/up/kernel": P(None, "data"),
        "blocks/**/gate/kernel": P(None, "data"),
        "blocks/**/down/kernel": P("data", None),
        "embedding/table": P("data", None),
    },
}


@pytest.mark.parametrize("kind", RULES)
def test_gradients_of_sharded_parameters_equal_those_of_one_device(alone, kind):
    mesh = make_mesh()
    train_step, state = start(make_config())

    def place(path, leaf):
        specs = [spec for rule, spec in RULES[kind].items() if matches(path, [rule])]
        return jax.device_put(leaf, NamedSharding(mesh, specs[0] if specs else P()))

    sharded = replicate(state, mesh).replace(params=map_with_path(place, state.params))
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(sharded.params))
    batch = jax.device_put(make_batch(), NamedSharding(mesh, P("data" if kind == "fsdp" else None)))
    check(raw(*jax.jit(train_step)(sharded, batch)), alone)


def test_micro_batches_move_no_rows_between_devices():
    """The compiled program has an all-reduce and no other communication."""
    config, mesh = make_config(accumulate=2), make_mesh()
    model = GPT(config.model)
    step = compile_step(make_train_step(model, config), mesh, "jit")
    state = replicate(init_state(model, config), mesh)
    program = step.lower(state, shard_batch(make_batch(), mesh, "jit", 2)).compile().as_text()
    assert "all-reduce" in program
    assert not re.search("all-to-all|all-gather|collective-permute", program)


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_several_steps_are_traced_once_and_the_state_is_donated_and_stays_replicated(parallel):
    config, mesh = make_config(optimizer=Adamw(learning_rate=0.01)), make_mesh()
    model = GPT(config.model)
    train_step, traces = make_train_step(model, config), []

    def counted(*args, **kwargs):
        traces.append(1)
        return train_step(*args, **kwargs)

    step = compile_step(counted, mesh, parallel)
    state = replicate(init_state(model, config), mesh)
    losses = []
    for _ in range(4):
        before = state
        state, metrics = step(state, shard_batch(make_batch(), mesh, parallel))
        losses.append(float(metrics["loss"]))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
        assert all(len(leaf.sharding.device_set) == mesh.size for leaf in jax.tree.leaves(state))
        assert all(value.shape == () for value in metrics.values())
    assert len(traces) == 1
    assert losses == sorted(losses, reverse=True)


def test_under_pmap_each_device_has_its_own_dropout_key():
    """The same row has another loss on another device."""
    config = make_config(dropout=0.5)
    model = GPT(config.model)
    state = init_state(model, config)
    first, other = jax.tree.map(lambda x: x[-1:], make_batch()), jax.tree.map(lambda x: x[:1], make_batch())
    other = other._replace(weights=np.zeros_like(other.weights))
    step = jax.pmap(partial(make_train_step(model, config), axis_name="data"), "data", in_axes=(None, 0), out_axes=None)
    losses = [
        float(step(state, jax.tree.map(lambda *x: np.stack(x), *rows))[1]["loss"])
        for rows in ((first, other), (other, first))
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
@pytest.mark.parametrize(("devices", "accumulate"), [(3, 1), (4, 4)])
def test_rows_that_devices_and_micro_batches_do_not_divide_are_refused(devices, accumulate, parallel):
    with pytest.raises(ValueError, match=r"train\.batch_size"):
        shard_batch(make_batch(), make_mesh(jax.devices()[:devices]), parallel, accumulate)


def test_the_default_mesh_has_all_devices_on_its_data_axis():
    mesh = make_mesh()
    assert mesh.shape == {"data": 4}
    assert mesh.axis_types == (AxisType.Auto,)
